"""The embedded default model: a recipe, and how to make a GGUF of it (docs/demo-model.md)."""
