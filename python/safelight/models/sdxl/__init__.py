"""Stable Diffusion XL: pictures from text and from pictures, repainted whole or in part."""
