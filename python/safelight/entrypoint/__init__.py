"""The only process that speaks HTTP."""
