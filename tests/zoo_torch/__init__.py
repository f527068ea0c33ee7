"""Tiny safetensors checkpoints for tests, written with the libraries of the formats themselves."""
