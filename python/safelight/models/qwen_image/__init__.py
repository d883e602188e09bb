"""Qwen-Image: pictures from text, from a picture, and inpainting; Qwen-Image-Edit."""
