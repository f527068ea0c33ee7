"""Checks hyperparameters for values that would make llama.cpp abort, divide by zero or overrun.

llama.cpp reports a wrong tensor shape or a missing key as an error, but asserts much else, and an
assertion ends the whole process. What it asserts or divides by is refused here first. Keys that
only some architectures know are checked only where they are present.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from localmoe.errors import ModelFormatError
from localmoe.weights.gguf import architecture_of
from localmoe.weights.gguf_header import GgufHeader
from localmoe.weights.gguf_values import Value
from localmoe.weights.hparam_limits import (
    ARCHITECTURE_RANGES,
    EQUAL_HEADS,
    LATENT,
    NEEDS_GATING,
    NEEDS_WINDOW,
    RANGES,
    ROPE_SCALINGS,
    ROTATES,
    ROTATES_HALF_OF_IT,
    ROTATES_IN_SECTIONS,
    ROTATES_WHOLE_HEAD,
    SCALES_QUERIES,
    WITHOUT_ATTENTION,
)
from localmoe.weights.tensor_checks import check_tensors
from localmoe.weights.vocabulary import check_vocabulary


class _Hparams:
    """One model's keys, without the architecture in front."""

    def __init__(self, header: GgufHeader) -> None:
        self.header, self.path = header, header.path
        self.architecture = architecture_of(header)

    def value(self, key: str) -> Value | None:
        return self.header.metadata.get(f"{self.architecture}.{key}")

    def integer(self, key: str, default: int) -> int:
        """Return a number; of an array the first. Its range was checked before."""
        value = self.value(key)
        if isinstance(value, tuple):
            value = value[0] if value else default
        return value if isinstance(value, int) else default

    def elements(self, key: str, count: int) -> tuple[int, ...] | None:
        """Return so many numbers: those of an array, or the same one again and again."""
        value = self.value(key)
        if value is None:
            return None
        if isinstance(value, tuple):
            if len(value) != count:
                raise self.error(key, f"should have {count} elements", value)
            return tuple(int(element) for element in value)
        return (self.integer(key, 0),) * count

    def error(self, key: str, wanted: str, found: object) -> ModelFormatError:
        return ModelFormatError(
            f"{self.path}: {self.architecture}.{key} {wanted}, but is {str(found)[:80]}. "
            "The file is damaged, or made by another program."
        )


def check_hparams(headers: Sequence[GgufHeader]) -> None:
    """Refuse a model that llama.cpp would abort the process for. Takes all of its shards.

    Raises ModelFormatError, UnsupportedModelError.
    """
    hparams = _Hparams(headers[0])
    for check in _CHECKS:
        check(hparams)
    _check_blocks(hparams, headers)
    n_tokens = check_vocabulary(headers[0])
    check_tensors(headers, n_tokens, hparams.integer("embedding_length", 0))


def _check_presence(hparams: _Hparams) -> None:
    needed = ["block_count", "context_length", "embedding_length"]
    if hparams.architecture not in WITHOUT_ATTENTION:
        needed.append("attention.head_count")
    for key in needed:
        if hparams.value(key) is None:
            raise hparams.error(key, "is needed", "missing")
    if hparams.architecture in NEEDS_GATING and hparams.value("expert_gating_func") is None:
        raise hparams.error("expert_gating_func", "is needed", "missing")


def _check_ranges(hparams: _Hparams) -> None:
    ranges = RANGES | ARCHITECTURE_RANGES.get(hparams.architecture, {})
    for key, (least, most) in ranges.items():
        value = hparams.value(key)
        for element in value if isinstance(value, tuple) else (value,):
            if element is None:
                continue
            is_number = isinstance(element, int | float) and not isinstance(element, bool)
            if not is_number or not least <= float(element) <= most:
                raise hparams.error(key, f"should be a number from {least} to {most}", value)


def _check_finite(hparams: _Hparams) -> None:
    prefix = hparams.architecture + "."
    for key, value in hparams.header.metadata.items():
        if key.startswith(prefix) and isinstance(value, float) and not math.isfinite(value):
            raise hparams.error(key.removeprefix(prefix), "should be finite", value)


def _check_heads(hparams: _Hparams) -> None:
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


def _check_head_widths(hparams: _Hparams) -> None:
    n_heads = hparams.integer("attention.head_count", 0)
    if not n_heads:
        return  # a first layer without attention: llama.cpp takes no widths from the metadata
    default = hparams.integer("embedding_length", 1) // n_heads
    key_width = hparams.integer("attention.key_length", default)
    value_width = hparams.integer("attention.value_length", default)
    rotated = hparams.integer("rope.dimension_count", key_width)
    if rotated % 2 or rotated > key_width:
        raise hparams.error(
            "rope.dimension_count", f"should be even and at most the head's {key_width}", rotated
        )
    if hparams.architecture in EQUAL_HEADS and key_width != value_width:
        raise hparams.error("attention.value_length", f"should be {key_width}", value_width)
    if hparams.architecture in ROTATES_WHOLE_HEAD and rotated != key_width:
        raise hparams.error("rope.dimension_count", f"should be {key_width}", rotated)
    if hparams.architecture in ROTATES and not rotated:
        raise hparams.error("rope.dimension_count", "should be above zero", rotated)
    if hparams.architecture in ROTATES_HALF_OF_IT and rotated % 4:
        raise hparams.error("rope.dimension_count", "should be a multiple of 4", rotated)
    _check_window_widths(hparams, key_width, rotated)
    _check_rope_sections(hparams, rotated)


def _check_window_widths(hparams: _Hparams, key_width: int, rotated: int) -> None:
    """Check the heads of layers with a window: where nothing is said, they are as the others."""
    key_width = hparams.integer("attention.key_length_swa", key_width)
    rotated = hparams.integer("rope.dimension_count_swa", rotated)
    least = 2 if hparams.architecture in ROTATES else 0
    if rotated % 2 or not least <= rotated <= key_width:
        raise hparams.error(
            "rope.dimension_count_swa", f"should be even and {least} to {key_width}", rotated
        )


def _check_rope_sections(hparams: _Hparams, rotated: int) -> None:
    """Check how many pairs of a head turn with time, height, width and one axis more."""
    key = "rope.dimension_sections"
    sections = hparams.elements(key, 4) or (0,)
    if sum(sections) > rotated:
        raise hparams.error(key, f"should add up to {rotated} at most", sections)
    if hparams.architecture in ROTATES_IN_SECTIONS and not any(sections[:3]):
        raise hparams.error(key, "should not be zero in the first three", sections)


def _check_rope_pattern(hparams: _Hparams) -> None:
    """Check that some layer rotates: a graph that none does has no use for the positions it has."""
    pattern = hparams.value("attention.rope_pattern")
    if isinstance(pattern, tuple) and not any(pattern):
        raise hparams.error("attention.rope_pattern", "should have a layer that rotates", pattern)


def _check_latent_attention(hparams: _Hparams) -> None:
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


def _check_rope_scaling(hparams: _Hparams) -> None:
    value = hparams.value("rope.scaling.type")
    if value is not None and value not in ROPE_SCALINGS:
        raise hparams.error("rope.scaling.type", f"should be one of {ROPE_SCALINGS}", value)


def _check_expert_groups(hparams: _Hparams) -> None:
    n_experts = hparams.integer("expert_count", 0)
    n_groups = hparams.integer("expert_group_count", 0)
    if n_groups in (0, 1):
        return
    if not 0 < n_groups <= n_experts // 2 or n_experts % n_groups:
        raise hparams.error(
            "expert_group_count", f"should split {n_experts} experts evenly, two at least", n_groups
        )
    n_used = hparams.integer("expert_group_used_count", 0)
    if not 0 < n_used < n_groups:
        raise hparams.error("expert_group_used_count", f"should be 1 to {n_groups - 1}", n_used)


def _check_sliding_window(hparams: _Hparams) -> None:
    pattern = hparams.value("attention.sliding_window_pattern")
    window = hparams.integer("attention.sliding_window", 0)
    if not window and hparams.architecture in NEEDS_WINDOW:
        raise hparams.error("attention.sliding_window", "should be above zero", window)
    if not window or pattern is None:
        return
    if pattern == 1 or (isinstance(pattern, tuple) and not any(pattern)):
        raise hparams.error(
            "attention.sliding_window_pattern", "should have a layer with a window", pattern
        )


def _check_query_scaling(hparams: _Hparams) -> None:
    if hparams.architecture not in SCALES_QUERIES or not hparams.value(
        "attention.temperature_scale"
    ):
        return
    length = hparams.integer("attention.temperature_length", 0)
    if not length:
        raise hparams.error("attention.temperature_length", "should be above zero", length)


def _check_blocks(hparams: _Hparams, headers: Sequence[GgufHeader]) -> None:
    """Refuse tensors of layers beyond the number that the metadata give."""
    n_layers = hparams.integer("block_count", 1)
    for header in headers:
        for tensor in header.tensors:
            number = tensor.name.split(".")[1] if tensor.name.startswith("blk.") else ""
            if number and (not number.isdecimal() or int(number) >= n_layers):
                raise ModelFormatError(
                    f"{header.path} has the tensor {tensor.name!r}, but only {n_layers} layers."
                )


_CHECKS: tuple[Callable[[_Hparams], None], ...] = (
    _check_presence,
    _check_ranges,
    _check_finite,
    _check_heads,
    _check_head_widths,
    _check_rope_pattern,
    _check_latent_attention,
    _check_rope_scaling,
    _check_expert_groups,
    _check_sliding_window,
    _check_query_scaling,
)
