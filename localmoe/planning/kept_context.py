"""What transformers keeps of a context, from config.json and the shapes of what makes it.

Keys and values are as wide as the projections that they come from, whatever heads they are cut
into; latent attention keeps its latents. Where a window is plain it counts, else everything is
taken to be kept: rather too much than too little.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from localmoe.errors import UnsupportedModelError
from localmoe.planning.recurrent_state import DECAY, recurrent_state
from localmoe.weights.checkpoint_config import MAX_LAYERS, CheckpointConfig
from localmoe.weights.checkpoint_layout import CheckpointLayout
from localmoe.weights.expert_names import layer_place

DTYPE_NBYTES = {"BF16": 2, "F16": 2, "F32": 4}
_KEPT = re.compile(
    r"(?:k_proj|v_proj\w*|kv_proj|kv_a_proj_with_mqa|wk|wv|wkv|wkv_a_with_mqa|wk_dv|wv_dv)\.weight"
)
"""Of what these give, all is kept."""
_ALL_AT_ONCE = re.compile(r"(?:qkv_proj|query_key_value|Wqkv|qkv)\.weight")
"""Queries, keys and values from one matrix."""
_SUMMARY = "compressor"
"""In names of what makes one entry of several tokens; its entries count by their rate."""
_WINDOWS = {
    "sliding_attention": ("sliding_window", "sliding_window_size"),
    "hybrid_sliding": ("sliding_window", "sliding_window_size"),
    "chunked_attention": ("attention_chunk_size",),
}
INDEX_HEADS = ("index_n_heads", "indexer_n_heads")
"""Of those that choose which tokens are attended to."""
RATES = "compress_rates"
"""Tokens that become one entry, by kind of layer."""


@dataclass(frozen=True)
class KeptContext:
    """Bytes that each layer keeps of a full context."""

    layers: tuple[int, ...]
    copied: tuple[bool, ...]
    """Which of them grow by copying: windows, states, what several tokens become, and indexes."""

    @property
    def of_copied(self) -> tuple[int, ...]:
        """Bytes of those that grow by copying."""
        return tuple(n for n, copied in zip(self.layers, self.copied, strict=True) if copied)

    @property
    def nbytes(self) -> int:
        """All layers together, and the largest that is copied once more."""
        return sum(self.layers) + max(self.of_copied, default=0)


def kept_context(layout: CheckpointLayout, tokens: int, step_tokens: int = 0) -> KeptContext:
    """Return what the layers keep of so many tokens; in the midst of a step a window has its, too.

    Raises ModelFormatError, UnsupportedModelError.
    """
    config, found = layout.config, _Widths(layout)
    if not any(found.widths.values()):
        raise UnsupportedModelError(
            f"what a {config.model_type} keeps of its context cannot be told: no tensor has a name "
            "that keys and values are known by. localmoe run finds it out with torch."
        )
    types = _layer_types(config)
    state = recurrent_state(layout)
    nbytes = DTYPE_NBYTES[config.dtype]
    indexed = bool(config.number(*INDEX_HEADS))
    layers, copied = [], []
    for layer in range(max(found.widths) + 1):
        if layer in found.recurrent:
            layers.append(state.nbytes if state else 0)
            copied.append(True)
            continue
        kind = types[layer] if layer < len(types) else ""
        held = _held(config, kind, tokens, step_tokens)
        layers.append((tokens if held is None else held) * found.widths.get(layer, 0) * nbytes)
        copied.append(held is not None or indexed)
    return KeptContext(tuple(layers), tuple(copied))


def _held(config: CheckpointConfig, kind: str, tokens: int, step_tokens: int) -> int | None:
    """Return of how many tokens a layer of this kind keeps something; None: of all."""
    names = _WINDOWS.get(kind)
    window = config.number(*names) if names else None
    if window:
        return min(tokens, window - 1 + step_tokens)
    rates = config.text.get(RATES)
    rate = rates.get(kind) if isinstance(rates, Mapping) else None
    if type(rate) is int and rate > 0:
        return min(tokens, (config.number("sliding_window") or 0) + tokens // rate)
    return None


class _Widths:
    """How many numbers each layer keeps of a token, and which layers keep a state instead."""

    def __init__(self, layout: CheckpointLayout) -> None:
        self.widths: dict[int, int] = {}
        self.recurrent: set[int] = set()
        for weight in layout.resident:
            stack, layer = layer_place(weight.name) or ("", MAX_LAYERS)
            if stack != layout.stack or layer >= MAX_LAYERS or not weight.shape:
                continue
            width = _kept_width(weight.name, weight.shape[0], layout.config)
            self.widths[layer] = self.widths.get(layer, 0) + width
            if weight.name.endswith(DECAY):
                self.recurrent.add(layer)


def _kept_width(name: str, n_rows: int, config: CheckpointConfig) -> int:
    words = name.split(".")
    if _SUMMARY in words:
        return 0
    end = ".".join(words[-2:])
    if _KEPT.fullmatch(end):
        return n_rows
    if not _ALL_AT_ONCE.fullmatch(end):
        return 0
    heads = config.number("num_attention_heads") or 1
    kept = config.number("num_key_value_heads") or heads
    return n_rows * 2 * kept // (heads + 2 * kept)


def _layer_types(config: CheckpointConfig) -> list[str]:
    found = config.text.get("layer_types") or config.text.get("layers_block_type") or []
    return [str(kind) for kind in found] if isinstance(found, list) else []
