"""Any diffusers pipeline that has no family: its own `__call__`, stepped from outside."""
