"""The output manager: finished frames in shared memory become durable files. Imports no torch."""
