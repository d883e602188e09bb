"""Adapters (LoRA) of a loaded pipeline: which are in force, by diffusers' loaders and peft."""
