"""The weights of a checkpoint by the names that models know, told by the names of their tensors.

How codes are decoded is the torch engine's affair; here is counted how many numbers there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from localmoe.weights.safetensors import StoredTensor

FLOATS = ("BF16", "F16", "F32")
FP8, INT4, NVFP4, MXFP4 = "FP8", "INT4", "NVFP4", "MXFP4"
ENCODINGS = (FP8, INT4, NVFP4, MXFP4)
_CODES = {".weight_packed": ".weight", "_blocks": ""}
"""What a tensor of codes is called after, where that is not the weight itself."""
_SCALES = ("_scale", "_scale_inv", "_scale_2")
_DECODING = (
    *(".weight_scale", ".weight_scale_inv", ".weight_global_scale", ".weight_zero_point"),
    *(".weight_scale_2", "_scale", "_scale_inv", "_scales"),
)
"""What stands beside codes and is needed to decode them, after the name without `.weight`."""
_ASIDE = (
    *(".weight_shape", ".input_scale", ".input_global_scale", ".activation_scale"),
    *(".output_scale", ".k_scale", ".v_scale", ".q_scale"),
)
"""Never loaded: for computing in fewer bits, or said by other tensors, too."""
_NUMBERS_PER_CODE = {"I32": 8, "U8": 2}


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight: one tensor, or codes and what decodes them."""

    name: str
    kind: str
    """The type of its numbers, such as BF16, or of its codes: one of ENCODINGS."""
    tensors: tuple[StoredTensor, ...]
    """The numbers or codes first."""
    n_numbers: int

    @property
    def is_encoded(self) -> bool:
        """Whether numbers have to be made of codes before anything is computed."""
        return self.kind in ENCODINGS

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its numbers or codes, as they are stored."""
        return self.tensors[0].shape

    @property
    def nbytes(self) -> int:
        """Bytes in the files."""
        return sum(tensor.extent.nbytes for tensor in self.tensors)

    def decoded_nbytes(self, dtype_nbytes: int) -> int:
        """Return its bytes in memory, where codes become numbers of so many bytes."""
        return self.n_numbers * dtype_nbytes if self.is_encoded else self.nbytes


def stored_weights(
    tensors: Mapping[str, StoredTensor],
) -> tuple[list[StoredWeight], list[StoredTensor]]:
    """Return the weights that tensors make up, and the tensors that no engine loads."""
    weights: dict[str, StoredWeight] = {}
    used: set[str] = set()
    for name, tensor in tensors.items():
        found = _encoded(name, tensor, tensors)
        if found:
            weights[name] = found
            used.update(stored.name for stored in found.tensors)
    aside = []
    for name, tensor in tensors.items():
        if name in used:
            continue
        if name.endswith(_ASIDE):
            aside.append(tensor)
        else:
            weights[name] = StoredWeight(name, tensor.dtype, (tensor,), math.prod(tensor.shape))
    return list(weights.values()), aside


def _encoded(
    name: str, codes: StoredTensor, tensors: Mapping[str, StoredTensor]
) -> StoredWeight | None:
    """Return the weight that a tensor has the codes of; None: it has none."""
    end = next((end for end in _CODES if name.endswith(end)), None)
    whole = name.removesuffix(end) + _CODES[end] if end else name
    if end is None and not (
        codes.dtype in ("F8_E4M3", "U8") and any(f"{name}{scale}" in tensors for scale in _SCALES)
    ):
        return None
    stem = whole.removesuffix(".weight")
    # A plain name without `.weight` has its scales right behind it; with it, behind a dot.
    ends = [e for e in _DECODING if e.startswith(".") == (whole != stem)]
    beside = [tensors[f"{stem}{e}"] for e in ends if f"{stem}{e}" in tensors]
    kind = _kind(end, codes, f"{stem}.weight_global_scale" in tensors)
    per_code = 1 if kind == FP8 else _NUMBERS_PER_CODE.get(codes.dtype, 1)
    return StoredWeight(whole, kind, (codes, *beside), math.prod(codes.shape) * per_code)


def _kind(end: str | None, codes: StoredTensor, has_global_scale: bool) -> str:
    if end == "_blocks":
        return MXFP4
    if end is None:
        return FP8 if codes.dtype == "F8_E4M3" else NVFP4
    if codes.dtype == "I32":
        return INT4
    return NVFP4 if has_global_scale else MXFP4
