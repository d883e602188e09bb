"""Model families: each has `spec.py` (no torch), `adapter.py` (torch) and `plan.py`."""
