"""What to say of a dense model that does not fit: nothing of it can be streamed."""

from __future__ import annotations

from localmoe.errors import BudgetError
from localmoe.planning.plan import MemoryPlan
from localmoe.planning.sizes import format_nbytes

LARGE_KV_BYTES = 64 << 20
"""From here on a smaller context is worth naming."""
_LEAST_CONTEXT_TOKENS = 512


def dense_too_small(least: MemoryPlan, budget_bytes: int, mib: int) -> BudgetError:
    """Return the error for a budget below `mib`, the smallest that works, with that plan."""
    return BudgetError(
        f"a budget of {format_nbytes(budget_bytes)} is too small for this model. It is dense: "
        "every token needs all of its weights, so nothing of it can be streamed. Its weights take "
        f"{format_nbytes(least.resident_bytes)}, the KV cache of {least.context_tokens} tokens "
        f"{format_nbytes(least.kv_bytes)}, compute buffers {format_nbytes(least.compute_bytes)}, "
        f"and the program itself {format_nbytes(least.base_bytes)}. Use --memory {mib}MiB or more, "
        "or choose a smaller quantization of it, or a Mixture-of-Experts model."
    )


def smaller_context_tokens(kv_bytes: int, context_tokens: int) -> int | None:
    """Return a context that would save much, None where the KV cache is small anyway."""
    if kv_bytes < LARGE_KV_BYTES or context_tokens < 2 * _LEAST_CONTEXT_TOKENS:
        return None
    return max(_LEAST_CONTEXT_TOKENS, context_tokens // 4)
