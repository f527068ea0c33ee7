"""The torch engine: safetensors checkpoints through transformers, experts served by localmoe."""
