"""Checks hyperparameters for values that would make llama.cpp abort, divide by zero or overrun.

llama.cpp reports a wrong tensor shape or a missing key as an error, but asserts much else, and an
assertion ends the whole process. What it asserts or divides by is refused here first. Keys that
only some architectures know are checked only where they are present.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from localmoe.errors import ModelFormatError
from localmoe.weights.gguf_header import GgufHeader
from localmoe.weights.head_checks import check_head_widths, check_heads, check_latent_attention
from localmoe.weights.hparam_limits import (
    ARCHITECTURE_RANGES,
    NEEDS_GATING,
    NEEDS_WINDOW,
    RANGES,
    ROPE_SCALINGS,
    SCALES_QUERIES,
    WITHOUT_ATTENTION,
    WKV_STEP,
)
from localmoe.weights.hparam_values import Hparams
from localmoe.weights.tensor_checks import check_tensors
from localmoe.weights.vocabulary import check_vocabulary


def check_hparams(headers: Sequence[GgufHeader]) -> None:
    """Refuse a model that llama.cpp would abort the process for. Takes all of its shards.

    Raises ModelFormatError, UnsupportedModelError.
    """
    hparams = Hparams(headers[0])
    for check in _CHECKS:
        check(hparams)
    _check_blocks(hparams, headers)
    n_tokens = check_vocabulary(headers[0])
    check_tensors(headers, n_tokens, hparams.integer("embedding_length", 0))


def _check_presence(hparams: Hparams) -> None:
    needed = ["block_count", "context_length", "embedding_length"]
    if hparams.architecture not in WITHOUT_ATTENTION:
        needed.append("attention.head_count")
    for key in needed:
        if hparams.value(key) is None:
            raise hparams.error(key, "is needed", "missing")
    if hparams.architecture in NEEDS_GATING and hparams.value("expert_gating_func") is None:
        raise hparams.error("expert_gating_func", "is needed", "missing")


def _check_ranges(hparams: Hparams) -> None:
    ranges = RANGES | ARCHITECTURE_RANGES.get(hparams.architecture, {})
    for key, (least, most) in ranges.items():
        value = hparams.value(key)
        for element in value if isinstance(value, tuple) else (value,):
            if element is None:
                continue
            is_number = isinstance(element, int | float) and not isinstance(element, bool)
            if not is_number or not least <= float(element) <= most:
                raise hparams.error(key, f"should be a number from {least} to {most}", value)


def _check_finite(hparams: Hparams) -> None:
    prefix = hparams.architecture + "."
    for key, value in hparams.header.metadata.items():
        if key.startswith(prefix) and isinstance(value, float) and not math.isfinite(value):
            raise hparams.error(key.removeprefix(prefix), "should be finite", value)


def _check_rope_pattern(hparams: Hparams) -> None:
    """Check that some layer rotates: a graph that none does has no use for the positions it has."""
    pattern = hparams.value("attention.rope_pattern")
    if isinstance(pattern, tuple) and not any(pattern):
        raise hparams.error("attention.rope_pattern", "should have a layer that rotates", pattern)


def _check_rope_scaling(hparams: Hparams) -> None:
    value = hparams.value("rope.scaling.type")
    if value is not None and value not in ROPE_SCALINGS:
        raise hparams.error("rope.scaling.type", f"should be one of {ROPE_SCALINGS}", value)


def _check_expert_groups(hparams: Hparams) -> None:
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


def _check_sliding_window(hparams: Hparams) -> None:
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


def _check_query_scaling(hparams: Hparams) -> None:
    if hparams.architecture not in SCALES_QUERIES or not hparams.value(
        "attention.temperature_scale"
    ):
        return
    length = hparams.integer("attention.temperature_length", 0)
    if not length:
        raise hparams.error("attention.temperature_length", "should be above zero", length)


def _check_wkv_heads(hparams: Hparams) -> None:
    size = hparams.integer("wkv.head_size", 0)
    if size % WKV_STEP:
        raise hparams.error("wkv.head_size", f"should be a multiple of {WKV_STEP}", size)


def _check_blocks(hparams: Hparams, headers: Sequence[GgufHeader]) -> None:
    """Refuse tensors of layers beyond the number that the metadata give."""
    n_layers = hparams.integer("block_count", 1)
    for header in headers:
        for tensor in header.tensors:
            number = tensor.name.split(".")[1] if tensor.name.startswith("blk.") else ""
            if number and (not number.isdecimal() or int(number) >= n_layers):
                raise ModelFormatError(
                    f"{header.path} has the tensor {tensor.name!r}, but only {n_layers} layers. "
                    "The file is damaged, or made by another program."
                )


_CHECKS: tuple[Callable[[Hparams], None], ...] = (
    _check_presence,
    _check_ranges,
    _check_finite,
    check_heads,
    check_head_widths,
    check_latent_attention,
    _check_rope_pattern,
    _check_rope_scaling,
    _check_expert_groups,
    _check_sliding_window,
    _check_query_scaling,
    _check_wkv_heads,
)
