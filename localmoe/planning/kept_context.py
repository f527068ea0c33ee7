"""What transformers keeps of a context, from config.json and the shapes of what makes it.

Keys and values are as wide as the projections that they come from, whatever heads they are cut
into; latent attention keeps its latents. Where a window is plain it counts, else everything is
taken to be kept: rather too much than too little.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from localmoe.errors import UnsupportedModelError
from localmoe.weights.checkpoint_config import CheckpointConfig
from localmoe.weights.checkpoint_layout import CheckpointLayout

DTYPE_NBYTES = {"BF16": 2, "F16": 2, "F32": 4}
_KEPT = re.compile(r"(?:k_proj|v_proj\w*|kv_a_proj_with_mqa|kv_proj|wkv_a_with_mqa)\.weight")
"""Of what these give, all is kept."""
_INDEX = re.compile(r"indexer\.(?:wk|k_proj)\.weight")
_ALL_AT_ONCE = re.compile(r"(?:qkv_proj|query_key_value|Wqkv|qkv)\.weight")
"""Queries, keys and values from one matrix."""
_WINDOWS = {
    "sliding_attention": "sliding_window",
    "hybrid_sliding": "sliding_window",
    "chunked_attention": "attention_chunk_size",
}
_RECURRENT = ("linear_attention", "mamba", "conv")
_STATES = (
    ("linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim"),
    ("linear_num_heads", "linear_head_dim", "linear_head_dim"),
    ("mamba_n_heads", "mamba_d_head", "mamba_d_state"),
    ("mamba_num_heads", "mamba_head_dim", "ssm_state_size"),
    ("hidden_size", "mamba_expand", "mamba_d_state"),
)
"""Sizes of a recurrent layer's state under the names of several families."""
_STATE_NUMBER_NBYTES = 4


@dataclass(frozen=True)
class KeptContext:
    """Bytes that each layer keeps of a full context."""

    layers: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """All layers together, and the largest once more: it is copied while a token is added."""
        return sum(self.layers) + max(self.layers, default=0)


def kept_context(layout: CheckpointLayout, tokens: int, step_tokens: int = 0) -> KeptContext:
    """Return what the layers keep of so many tokens; in the midst of a step a window has its, too.

    Raises ModelFormatError, UnsupportedModelError.
    """
    config = layout.config
    widths = _widths(layout)
    types = _layer_types(config)
    n_layers = config.n_layers or max(widths, default=-1) + 1
    if not any(widths.values()):
        raise UnsupportedModelError(
            f"what a {config.model_type} keeps of its context cannot be told: no tensor has a name "
            "that keys and values are known by. localmoe run finds it out with torch."
        )
    state = _state_nbytes(config)
    nbytes = DTYPE_NBYTES[config.dtype]
    found = []
    for layer in range(n_layers):
        kind = types[layer] if layer < len(types) else ""
        if kind in _RECURRENT or not widths.get(layer):
            found.append(state if kind in _RECURRENT else 0)
            continue
        window = _window(config, kind)
        held = min(tokens, window - 1 + step_tokens) if window else tokens
        found.append(held * widths[layer] * nbytes)
    return KeptContext(tuple(found))


def _widths(layout: CheckpointLayout) -> dict[int, int]:
    """Return how many numbers each layer keeps of a token."""
    widths: dict[int, int] = {}
    start = f"{layout.stack}." if layout.stack else ""
    for weight in layout.resident:
        number, _, rest = weight.name.removeprefix(start).partition(".")
        if not weight.name.startswith(start) or not number.isdecimal() or not weight.shape:
            continue
        width = _kept_width(rest, weight.shape[0], layout.config)
        widths[int(number)] = widths.get(int(number), 0) + width
    return widths


def _kept_width(name: str, n_rows: int, config: CheckpointConfig) -> int:
    end = ".".join(name.split(".")[-3:])
    if _INDEX.search(end) or _KEPT.fullmatch(".".join(name.split(".")[-2:])):
        return n_rows
    if not _ALL_AT_ONCE.fullmatch(".".join(name.split(".")[-2:])):
        return 0
    heads = config.number("num_attention_heads") or 1
    kept = config.number("num_key_value_heads") or heads
    return n_rows * 2 * kept // (heads + 2 * kept)


def _layer_types(config: CheckpointConfig) -> list[str]:
    found = config.text.get("layer_types") or config.text.get("layers_block_type") or []
    return [str(kind) for kind in found] if isinstance(found, list) else []


def _window(config: CheckpointConfig, kind: str) -> int | None:
    name = _WINDOWS.get(kind)
    return config.number(name) if name else None


def _state_nbytes(config: CheckpointConfig) -> int:
    for names in _STATES:
        sizes = [config.number(name) for name in names]
        if all(sizes):
            heads, rows, columns = (size or 0 for size in sizes)
            return heads * rows * columns * _STATE_NUMBER_NBYTES
    return 0
