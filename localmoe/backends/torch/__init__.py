"""The engine of safetensors checkpoints: torch computes, transformers says what."""
