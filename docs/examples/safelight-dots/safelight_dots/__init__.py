"""A model family for Safelight that comes as a package of its own."""
