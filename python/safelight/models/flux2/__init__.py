"""FLUX.2 and FLUX.2 Klein: from text, and from one or several reference pictures."""
