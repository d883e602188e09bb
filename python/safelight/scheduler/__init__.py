"""The scheduler: which samples share the next step. Imports no torch."""
