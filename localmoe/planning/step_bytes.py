"""What the torch engine sets aside to compute a step, estimated from config.json and shapes.

The engine finds it by running the model on torch's meta device (`backends/torch/footprint.py`). The
terms here are what that counts, and were fitted to it: 8 families in their published shapes.
"""

from __future__ import annotations

from collections.abc import Mapping

from localmoe.planning.kept_context import DTYPE_NBYTES, INDEX_HEADS, RATES, kept_context
from localmoe.planning.recurrent_state import recurrent_state
from localmoe.weights.checkpoint_config import CheckpointConfig
from localmoe.weights.checkpoint_layout import CheckpointLayout

LONGEST_CHUNK = 512
_SCRATCH = 1.25
"""What kernels take for themselves, over what tensors take."""
_ROWS_AT_ONCE = 2.6
"""Of a layer's rows, as wide as the model and its queries, so many are there at once."""
_SCORES_AT_ONCE = 3
"""Tables of scores that are there at once, where attention is computed plainly."""
_INDEX_SCORES_AT_ONCE = 2
"""The same, in 32 bits, of the heads that choose which tokens are attended to."""
_INDEX_RATES = ("indexer_compress_ratio", "index_kpool", "index_block_size")
"""Tokens that share a score there."""
_PLAIN_ATTENTION = (
    *("gpt_oss", "mimo_v2_flash", "deepseek_v4", "flint", "granitemoe_swa", "hy_v4"),
    *("inkling2", "inkling2_text"),
)
"""Kinds of models whose attention transformers computes with all scores in memory."""
_LATENTS = ("kv_b_proj.weight", "wkv_b.weight")
"""What makes keys and values of all heads from the latents that are kept."""


def step_nbytes(layout: CheckpointLayout, context_tokens: int, tokens: int) -> int:
    """Return what a step of so many tokens takes that nearly fills the context.

    Raises ModelFormatError, UnsupportedModelError.
    """
    config = layout.config
    nbytes = DTYPE_NBYTES[config.dtype]
    read = max(0, context_tokens - LONGEST_CHUNK) + min(tokens, context_tokens)
    # Windows are made anew with the step's tokens, and hold them until the next step.
    during, after = kept_context(layout, read, tokens), kept_context(layout, context_tokens)
    context = max(0, sum(during.of_copied) - sum(after.of_copied))
    heads, width = _heads(config)
    hidden = config.number("hidden_size") or 0
    dense = config.number("intermediate_size") or 0
    rows = _ROWS_AT_ONCE * tokens * (hidden + max(heads * width, dense)) * nbytes
    entries = _entries(config, read)
    attention = entries * _expanded(layout, tokens) * nbytes + tokens * read
    if config.model_type in _PLAIN_ATTENTION:
        attention += _SCORES_AT_ONCE * heads * tokens * entries * nbytes
    index_heads = config.number(*INDEX_HEADS) or 0
    indexed = entries // (config.number(*_INDEX_RATES) or 1)
    attention += _INDEX_SCORES_AT_ONCE * index_heads * tokens * indexed * 4
    state = recurrent_state(layout)
    states = tokens * state.token_nbytes if state and tokens > 1 else 0
    return int(_SCRATCH * (context + attention + rows + states))


def _entries(config: CheckpointConfig, tokens: int) -> int:
    """Return how many entries are attended to of so many tokens, where several become one."""
    rates = config.text.get(RATES)
    counts = rates.values() if isinstance(rates, Mapping) else ()
    least = min((rate for rate in counts if type(rate) is int and rate > 0), default=0)
    return (
        min(tokens, (config.number("sliding_window") or 0) + tokens // least) if least else tokens
    )


def _heads(config: CheckpointConfig) -> tuple[int, int]:
    """Return how many heads of queries there are, and how wide each is."""
    heads = config.number("num_attention_heads") or 1
    rotated, plain = config.number("qk_rope_head_dim"), config.number("qk_nope_head_dim")
    if rotated is not None and plain is not None:
        return heads, rotated + plain
    hidden = config.number("hidden_size") or 0
    return heads, config.number("head_dim") or hidden // heads


def _expanded(layout: CheckpointLayout, tokens: int) -> int:
    """Return how many numbers keys and values of a token become, where heads share what is kept."""
    config = layout.config
    heads, width = _heads(config)
    latent = max((w.shape[0] for w in layout.resident if w.name.endswith(_LATENTS)), default=0)
    if latent:
        return latent + heads * width
    kept = config.number("num_key_value_heads") or heads
    is_copied = tokens > 1 or config.model_type in _PLAIN_ATTENTION
    return 2 * heads * width if is_copied and kept < heads else 0
