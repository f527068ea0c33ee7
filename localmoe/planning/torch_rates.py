"""How fast the torch engine computes on a machine, compared with what the table says of it.

Measured on one core with AVX-512 and without instructions for BF16 (docs/planning.md).
"""

from __future__ import annotations

from dataclasses import replace

from localmoe.planning.rates import Rates, Views
from localmoe.weights.stored_weights import FP8, INT4, MXFP4, NVFP4

_DECODED_PER_CORE = {FP8: 0.55e9, INT4: 0.4e9, NVFP4: 0.28e9, MXFP4: 0.26e9}
"""Bytes of codes and scales that one core decodes in a second."""
_NUMBERS_PER_BYTE = {FP8: 1.0, INT4: 1.78, NVFP4: 1.78, MXFP4: 1.88}
_NUMBER_NBYTES = 2
_LAYER_SECONDS = (3e-3, 2e-3, 1e-3)
"""What a layer of a token takes beside its weights, all of it in Python: slow, expected, fast."""
_ATTENTION_PER_CORE = 3e9
"""Keys and values that a core goes through in a second, each query head for itself: 2.8 and 3.2 GB
were found at 8,000 and 2,000 tokens."""
_OPERATIONS = (1 / 6, 1 / 6, 1.0)
"""Of what cores reach with quantized weights, what they reach in BF16: the most where they have
instructions for it."""


def torch_views(views: Views, cores: float) -> Views:
    """Return the views of a machine with so many cores, with torch computing."""
    slow, expected, fast = (
        _with_torch(rates, cores, layer, operations)
        for rates, layer, operations in zip(views, _LAYER_SECONDS, _OPERATIONS, strict=True)
    )
    return slow, expected, fast


def _with_torch(rates: Rates, cores: float, layer_seconds: float, operations: float) -> Rates:
    decode = dict(rates.decode)
    for kind, rate in _DECODED_PER_CORE.items():
        # What was decoded is multiplied like any weight.
        numbers = _NUMBERS_PER_BYTE[kind] * _NUMBER_NBYTES / rates.memory_bytes_per_second
        decode[kind] = 1 / (1 / (rate * cores) + numbers)
    return replace(
        rates,
        decode=decode,
        prefill={},
        layer_seconds=layer_seconds,
        kv_bytes_per_second=cores * _ATTENTION_PER_CORE,
        # All that is in Python is in the layer's.
        streamed_layer_seconds=0.0,
        streamed_expert_seconds=0.0,
        missed_layer_seconds=0.0,
        row_seconds=0.0,
        operations_per_second=rates.operations_per_second * operations,
    )
