"""Tiny random models for tests: every architecture as one function, written in milliseconds.

    path = zoo.write(tmp_path, "deepseek2")                      # a named model of zoo.MODELS
    path = zoo.write(tmp_path, "qwen3moe", expert_types=(("Q8_0", "Q8_0", "Q4_0"),), shards=3)

The weights are random but seeded; routing depends on the token, and the tokenizer and the chat
template work, so that everything from the file's header to a chat can be tested on them.
"""

from __future__ import annotations

from zoo.models import ARCHITECTURES, DENSE, LAYOUTS, MODELS, write
from zoo.shape import Shape

__all__ = ["ARCHITECTURES", "DENSE", "LAYOUTS", "MODELS", "Shape", "write"]
