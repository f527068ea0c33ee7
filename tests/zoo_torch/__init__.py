"""Tiny random transformers checkpoints: every Mixture-of-Experts type, written in milliseconds.

    path = zoo_torch.write(tmp_path, "deepseek_v3")
    model = zoo_torch.stock(path, torch.float32, "eager")
    logits = zoo_torch.logits_of(model, tokens, 4)

The weights are random but seeded, routing depends on the token, and what is worth knowing of each
type is in docs/torch-models.md, which `facts()` reads.
"""

from __future__ import annotations

from zoo_torch.checkpoint import stock, write
from zoo_torch.decoding import logits_of
from zoo_torch.facts import Facts, facts
from zoo_torch.shape import EXPERTS, VOCABULARY, Shape
from zoo_torch.tokenizer import write_tokenizer
from zoo_torch.types import TINY

__all__ = [
    "EXPERTS",
    "TINY",
    "VOCABULARY",
    "Facts",
    "Shape",
    "facts",
    "logits_of",
    "stock",
    "write",
    "write_tokenizer",
]
