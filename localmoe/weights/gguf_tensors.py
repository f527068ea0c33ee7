"""The table of tensors of a GGUF file: shapes, types and places, hostile until checked."""

from __future__ import annotations

import struct
from typing import NamedTuple

from localmoe.errors import ModelFormatError, UnsupportedModelError
from localmoe.weights.byte_cursor import ByteCursor
from localmoe.weights.ggml_types import GGML_TYPES, REMOVED_TYPES
from localmoe.weights.gguf_values import read_name

MAX_NAME_NBYTES = 63
MAX_DIMS = 4
MAX_INT64 = (1 << 63) - 1


class TensorInfo(NamedTuple):
    """A tensor: `shape` is ggml's ne, innermost first, always four numbers.

    `offset` counts from the start of the file, not of its data.
    """

    name: str
    shape: tuple[int, int, int, int]
    type_name: str
    offset: int
    nbytes: int


def read_tensors(cursor: ByteCursor, count: int) -> list[TensorInfo]:
    """Return the table of tensors; offsets still count from the start of the data."""
    tensors: list[TensorInfo] = []
    names: set[str] = set()
    for index in range(count):
        name = read_name(cursor, f"the name of tensor {index}", MAX_NAME_NBYTES)
        if name in names:
            raise ModelFormatError(f"{cursor.path} has the tensor {name!r} twice.")
        names.add(name)
        tensors.append(_read_tensor(cursor, name))
    return tensors


def _read_tensor(cursor: ByteCursor, name: str) -> TensorInfo:
    what = f"the description of tensor {name!r}"
    n_dims = cursor.u32(what)
    if not 1 <= n_dims <= MAX_DIMS:
        raise ModelFormatError(f"{cursor.path}: tensor {name!r} has {n_dims} dimensions, not 1-4.")
    dims = struct.unpack(f"<{n_dims}Q", cursor.take(8 * n_dims, what))
    type_id, offset = cursor.u32(what), cursor.u64(what)
    type_name, nbytes = _tensor_nbytes(cursor.path, name, dims, type_id)
    a, b, c, d = (*dims, 1, 1, 1)[:MAX_DIMS]
    return TensorInfo(name, (a, b, c, d), type_name, offset, nbytes)


def _tensor_nbytes(path: str, name: str, dims: tuple[int, ...], type_id: int) -> tuple[str, int]:
    """Return the type's name and the bytes of the whole tensor."""
    if type_id in REMOVED_TYPES:
        raise UnsupportedModelError(
            f"{path}: tensor {name!r} has type {REMOVED_TYPES[type_id]}, which llama.cpp no "
            "longer reads. Take a newer quantisation of this model."
        )
    if type_id not in GGML_TYPES:
        raise ModelFormatError(f"{path}: tensor {name!r} has the unknown type number {type_id}.")
    ggml_type = GGML_TYPES[type_id]
    n_elements = 1
    for dim in dims:
        n_elements *= dim
    nbytes = n_elements // ggml_type.block_elements * ggml_type.block_nbytes
    if n_elements == 0 or max(n_elements, nbytes) > MAX_INT64:
        raise ModelFormatError(f"{path}: tensor {name!r} has the impossible shape {list(dims)}.")
    if dims[0] % ggml_type.block_elements:
        raise ModelFormatError(
            f"{path}: tensor {name!r} has rows of {dims[0]} elements, which is no multiple of the "
            f"{ggml_type.block_elements} that a block of {ggml_type.name} holds."
        )
    return ggml_type.name, nbytes
