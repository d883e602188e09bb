"""LTX-2: video with its sound, from text or from a first picture."""
