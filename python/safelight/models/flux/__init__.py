"""FLUX.1 text-to-image: dev, with its guidance embedded, and schnell, without any."""
