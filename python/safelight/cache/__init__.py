"""Step caches: what a transformer need not compute anew at every step."""
