"""Wan 2.1 and 2.2: videos (and, with one frame, pictures) from text, and videos from pictures."""
