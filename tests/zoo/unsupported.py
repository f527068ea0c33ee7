"""Architectures with experts that no model of the zoo stands for, and why."""

from __future__ import annotations

from collections.abc import Mapping

UNSUPPORTED: Mapping[str, str] = {
    "dflash": "A draft model: it needs hidden states of the model that it guesses for.",
    "llada-moe": "A diffusion model: it fills in all places of a text at once, without a cache.",
    "llama-embed": "An encoder of whole texts: attention sees what comes later, too.",
    "nomic-bert-moe": "An encoder of whole texts: it has no output matrix to choose tokens with.",
    "refact": "Its loader takes experts, but its graph leaves them out: there is no routing.",
    "rnd1": "A diffusion model: it fills in all places of a text at once, without a cache.",
}
"""By llama.cpp's name of the architecture. localmoe refuses such files with an error."""
