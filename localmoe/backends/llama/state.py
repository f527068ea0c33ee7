"""Saved contexts: llama.cpp's own state file, followed by a checksum.

llama.cpp aborts the process on a state file that is cut off or damaged, so nothing is handed to it
before the checksum, the model's stamp and the number of tokens have been checked here.
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from localmoe.errors import EngineError
from localmoe.weights.catalog import Catalog

_DIGEST_NBYTES = 32
_HEAD = struct.Struct("<III")  # llama.cpp's magic, version and token count
_COPY_NBYTES = 1 << 20


def model_stamp(catalog: Catalog) -> list[int]:
    """Return what stands before the tokens of a state: numbers that name the model's layout."""
    digest = hashlib.sha256(catalog.architecture.encode())
    for tensor in catalog.resident:
        digest.update(f"{tensor.name} {tensor.extent.offset} {tensor.extent.nbytes}\n".encode())
    return [int(word) for word in np.frombuffer(digest.digest()[:16], np.int32)]


def seal(path: Path) -> None:
    """Append the checksum to a file that llama.cpp wrote, and make it durable."""
    with open(path, "rb+") as file:
        digest = _digest(file, os.fstat(file.fileno()).st_size)
        file.write(digest)
        file.flush()
        os.fsync(file.fileno())


def check(path: Path, stamp: list[int], capacity: int) -> None:
    """Raise EngineError unless the file is whole, of this model and fits `capacity` tokens."""
    try:
        with open(path, "rb") as file:
            reason = _defect(file, stamp, capacity)
    except OSError as error:
        reason = error.strerror
    if reason:
        raise EngineError(f"{path} is not a usable state of this model: {reason}")


def _defect(file: BinaryIO, stamp: list[int], capacity: int) -> str | None:
    nbytes = os.fstat(file.fileno()).st_size - _DIGEST_NBYTES
    if nbytes < _HEAD.size + 4 * len(stamp):
        return "it is too short"
    if _digest(file, nbytes) != file.read(_DIGEST_NBYTES):
        return "it is damaged or cut off (wrong checksum)"
    file.seek(0)
    count = _HEAD.unpack(file.read(_HEAD.size))[2]
    if np.frombuffer(file.read(4 * len(stamp)), np.int32).tolist() != stamp:
        return "it was written for another model"
    if count - len(stamp) > capacity:
        return f"it holds {count - len(stamp)} tokens and the context has {capacity}"
    return None


def _digest(file: BinaryIO, nbytes: int) -> bytes:
    """Return the checksum of the first `nbytes`; the file then stands behind them."""
    digest = hashlib.sha256()
    while nbytes:
        data = file.read(min(nbytes, _COPY_NBYTES))
        if not data:
            break
        digest.update(data)
        nbytes -= len(data)
    return digest.digest()
