"""Z-Image: text-to-image, and image-to-image with the same weights; Turbo and the base model."""
