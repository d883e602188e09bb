"""How the built-in model was made: ``python -m safelight.builtin.training --out DIR``."""
