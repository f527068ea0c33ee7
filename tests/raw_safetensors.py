"""Writes safetensors files byte by byte, also such as no writer makes, and sees them refused."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from localmoe.errors import ModelError, ModelFormatError
from localmoe.weights.safetensors import read_tensors

ENTRIES: Mapping[str, object] = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
    "b": {"dtype": "U8", "shape": [4], "data_offsets": [12, 16]},
}
"""A header of two tensors, 16 bytes of data."""
DATA = bytes(range(16))


def raw(header: object, data: bytes = DATA, *, header_nbytes: int | None = None) -> bytes:
    """Return a file; a header that is no bytes is written as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if header_nbytes is None else header_nbytes) + text + data


def one(
    dtype: object = "U8", shape: object = (4,), offsets: object = (0, 4), name: str = "t"
) -> dict[str, object]:
    """Return a header of one tensor."""
    return {name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def row(*places: Sequence[int]) -> dict[str, object]:
    """Return a header of tensors of bytes that lie at (begin, end)."""
    return {
        f"t{i}": {"dtype": "U8", "shape": [max(0, end - begin)], "data_offsets": [begin, end]}
        for i, (begin, end) in enumerate(places)
    }


def refuse(
    path: Path,
    data: bytes | None,
    message: str,
    kind: type[ModelError] = ModelFormatError,
    most_nbytes: int = 4 << 20,
) -> None:
    """Expect that a file is refused, with this in the message, holding hardly any memory."""
    if path.is_dir():
        path = path / "model.safetensors"
    if data is not None:
        path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(kind, match=message) as error:
            read_tensors(path)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert str(path.parent) in str(error.value)
    assert peak < most_nbytes
