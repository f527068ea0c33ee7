"""Refuses files that are readable, but hold no model that says one token after the other."""

from __future__ import annotations

from collections.abc import Mapping

from localmoe.errors import UnsupportedModelError
from localmoe.weights.gguf_header import GgufHeader

_ENCODER = "an encoder: it turns text into vectors"
_DIFFUSION = "a diffusion model: it fills in all places of a text at once"
_TRANSLATOR = "an encoder with a decoder: its input does not go through the decoder"
_DRAFT = "a draft model: it works only beside the model that it guesses for"
_SOUND = "a model of sound: its tokens are no text"
_PICTURE = "the part of a model that looks at pictures"

_ARCHITECTURES: Mapping[str, str] = {
    **dict.fromkeys(("bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert"), _ENCODER),
    **dict.fromkeys(("jina-bert-v2", "jina-bert-v3", "eurobert", "t5encoder"), _ENCODER),
    **dict.fromkeys(("gemma-embedding", "llama-embed"), _ENCODER),
    **dict.fromkeys(("dream", "llada", "llada-moe", "rnd1"), _DIFFUSION),
    **dict.fromkeys(("eagle3", "dflash", "gemma4-assistant"), _DRAFT),
    **dict.fromkeys(("wavtokenizer-dec", "pockettts", "qwen3tts"), _SOUND),
    "t5": _TRANSLATOR,
    "clip": _PICTURE,
}
_FILES: Mapping[object, str] = {
    "adapter": "an adapter (LoRA), not a model",
    "imatrix": "statistics for quantization, not a model",
    "mmproj": _PICTURE,
    "vocab": "a tokenizer without a model",
}
"""By general.type: files that have a model's architecture, but not its weights."""


def check_generative(header: GgufHeader, architecture: str) -> None:
    """Raise UnsupportedModelError for encoders, diffusion models and parts of models."""
    what = _FILES.get(header.metadata.get("general.type")) or _ARCHITECTURES.get(architecture)
    if header.metadata.get(f"{architecture}.attention.causal") is False:
        what = what or _ENCODER
    if header.metadata.get(f"{architecture}.pooling_type", 0) != 0:
        what = what or _ENCODER
    if what:
        raise UnsupportedModelError(
            f"{header.path} ({architecture}) is {what}. It is not autoregressive and cannot "
            "generate text token by token; choose the GGUF file of a model for text or chat."
        )
