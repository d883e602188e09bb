"""FLUX.1: dev and schnell (from text, from a picture, inpainting), Kontext and Fill."""
