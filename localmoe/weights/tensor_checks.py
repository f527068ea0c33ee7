"""Checks tensors for types and places that llama.cpp cannot compute with or refuses to load."""

from __future__ import annotations

from collections.abc import Sequence

from localmoe.errors import ModelFormatError, UnsupportedModelError
from localmoe.weights.gguf_header import GgufHeader
from localmoe.weights.gguf_tensors import TensorInfo

LEAST_ALIGNMENT = 32

_UNCOMPUTABLE = frozenset(("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"))
_MATRIX = (".weight", ".lora_a", ".lora_b")
"""How the names of factors of matrix products end."""
_MADE_OF_F32 = ("norm", "ssm_conv1d", "shortconv.conv", "time_mix_first", "time_mix_lerp")
_MADE_OF_I32 = ".ffn_gate_tid2eid.weight"


def check_tensors(headers: Sequence[GgufHeader], n_tokens: int, width: int) -> None:
    """Refuse tensors that the engine would abort on; `width` is the embedding length."""
    embedding = None
    for header in headers:
        for tensor in header.tensors:
            _check_type(header.path, tensor)
            if tensor.name == "token_embd.weight":
                embedding = tensor
    if embedding is None or embedding.shape != (width, n_tokens, 1, 1):
        found = list(embedding.shape) if embedding else "missing"
        raise ModelFormatError(
            f"{headers[0].path}: token_embd.weight should have shape [{width}, {n_tokens}], the "
            f"embedding length and the number of tokens, but is {found}. The file is damaged."
        )
    for header in headers:
        _check_layout(header)


def _check_layout(header: GgufHeader) -> None:
    """llama.cpp wants the tensors in the order of the table, without gaps but for padding."""
    if header.tensors and header.alignment < LEAST_ALIGNMENT:
        raise UnsupportedModelError(
            f"{header.path} is aligned to {header.alignment} bytes; llama.cpp needs at least "
            f"{LEAST_ALIGNMENT}. Convert the model again."
        )
    expected = header.data_offset
    for tensor in header.tensors:
        if tensor.offset != expected:
            raise UnsupportedModelError(
                f"{header.path}: tensor {tensor.name!r} lies at byte {tensor.offset}, but "
                f"llama.cpp wants it at {expected}, right behind the one before. "
                "Convert the model again."
            )
        expected += -(-tensor.nbytes // header.alignment) * header.alignment


def _check_type(path: str, tensor: TensorInfo) -> None:
    name, found = tensor.name, tensor.type_name
    if name.endswith(_MADE_OF_I32):
        wanted, is_right = "I32", found == "I32"
    elif _wants_f32(tensor):
        wanted, is_right = "F32", found == "F32"
    else:
        wanted, is_right = "a type for weights", found not in _UNCOMPUTABLE
    if not is_right:
        raise UnsupportedModelError(
            f"{path}: tensor {name!r} should be of {wanted}, but is of type {found}, which "
            "llama.cpp cannot compute with there. The file is damaged, or made by another program."
        )


def _wants_f32(tensor: TensorInfo) -> bool:
    name, is_row = tensor.name, tensor.shape[1:] == (1, 1, 1)
    return is_row or not name.endswith(_MATRIX) or any(word in name for word in _MADE_OF_F32)
