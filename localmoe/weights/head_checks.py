"""Checks the heads of attention: how many there are, how wide, and how much of them rotates."""

from __future__ import annotations

from localmoe.weights.hparam_limits import (
    EQUAL_HEADS,
    LATENT,
    NEVER_ROTATES,
    ROTATES,
    ROTATES_HALF_OF_IT,
    ROTATES_IN_SECTIONS,
    ROTATES_WHOLE_HEAD,
    WITHOUT_ATTENTION,
)
from localmoe.weights.hparam_values import Hparams


def check_heads(hparams: Hparams) -> None:
    """Refuse a model without heads, or with keys that its heads cannot share evenly."""
    n_layers = hparams.integer("block_count", 1)
    heads = hparams.elements("attention.head_count", n_layers) or ()
    kv_heads = hparams.elements("attention.head_count_kv", n_layers) or heads
    if not any(heads) and hparams.architecture not in WITHOUT_ATTENTION:
        raise hparams.error("attention.head_count", "should be above zero", 0)
    for n_heads, n_kv_heads in zip(heads, kv_heads, strict=bool(heads)):
        if n_heads and n_kv_heads and n_heads % n_kv_heads:
            raise hparams.error(
                "attention.head_count_kv", f"should divide the {n_heads} heads", n_kv_heads
            )


def check_head_widths(hparams: Hparams) -> None:
    """Refuse keys, values and rotations whose widths do not go together in this architecture."""
    n_heads = hparams.integer("attention.head_count", 0)
    if not n_heads:
        return  # a first layer without attention: llama.cpp takes no widths from the metadata
    default = hparams.integer("embedding_length", 1) // n_heads
    key_width = hparams.integer("attention.key_length", default)
    value_width = hparams.integer("attention.value_length", default)
    if hparams.architecture in EQUAL_HEADS and key_width != value_width:
        raise hparams.error("attention.value_length", f"should be {key_width}", value_width)
    if hparams.architecture not in NEVER_ROTATES:
        rotated = hparams.integer("rope.dimension_count", key_width)
        _check_rotation(hparams, key_width, rotated)
        _check_window_widths(hparams, key_width, rotated)
        _check_rope_sections(hparams, rotated)


def _check_rotation(hparams: Hparams, key_width: int, rotated: int) -> None:
    if rotated % 2 or rotated > key_width:
        raise hparams.error(
            "rope.dimension_count", f"should be even and at most the head's {key_width}", rotated
        )
    if hparams.architecture in ROTATES_WHOLE_HEAD and rotated != key_width:
        raise hparams.error("rope.dimension_count", f"should be {key_width}", rotated)
    if hparams.architecture in ROTATES and not rotated:
        raise hparams.error("rope.dimension_count", "should be above zero", rotated)
    if hparams.architecture in ROTATES_HALF_OF_IT and rotated % 4:
        raise hparams.error("rope.dimension_count", "should be a multiple of 4", rotated)


def _check_window_widths(hparams: Hparams, key_width: int, rotated: int) -> None:
    """Check the heads of layers with a window: where nothing is said, they are as the others."""
    key_width = hparams.integer("attention.key_length_swa", key_width)
    rotated = hparams.integer("rope.dimension_count_swa", rotated)
    least = 2 if hparams.architecture in ROTATES else 0
    if rotated % 2 or not least <= rotated <= key_width:
        raise hparams.error(
            "rope.dimension_count_swa", f"should be even and {least} to {key_width}", rotated
        )


def _check_rope_sections(hparams: Hparams, rotated: int) -> None:
    """Check how many pairs of a head turn with time, height, width and one axis more."""
    key = "rope.dimension_sections"
    sections = hparams.elements(key, 4) or (0,)
    if sum(sections) > rotated:
        raise hparams.error(key, f"should add up to {rotated} at most", sections)
    if hparams.architecture in ROTATES_IN_SECTIONS and not any(sections[:3]):
        raise hparams.error(key, "should not be zero in the first three", sections)


def check_latent_attention(hparams: Hparams) -> None:
    """Refuse a cached vector that is not a latent vector and the rotated part behind it."""
    if hparams.architecture not in LATENT:
        return
    rank = hparams.integer("attention.kv_lora_rank", 0)
    rotated = hparams.integer("rope.dimension_count", 0)
    key_width = hparams.integer("attention.key_length", 0)
    whole = hparams.integer("attention.key_length_mla", 0)
    if not 0 < rotated < (whole or key_width):
        raise hparams.error("rope.dimension_count", f"should be 1 to {whole or key_width}", rotated)
    if not whole:
        return  # an old file, whose keys are kept whole
    if key_width != rank + rotated:
        raise hparams.error("attention.key_length", f"should be {rank + rotated}", key_width)
    n_kv_heads = hparams.integer("attention.head_count_kv", 0)
    if n_kv_heads != 1:
        raise hparams.error("attention.head_count_kv", "should be 1", n_kv_heads)
