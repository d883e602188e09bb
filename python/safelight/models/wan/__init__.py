"""Wan 2.1 text-to-video (and, with one frame, text-to-image)."""
