"""Saved contexts: llama.cpp's own state file, followed by a checksum.

llama.cpp aborts the process on a state file that is cut off or damaged, so nothing is handed to it
before the checksum, the model's stamp and the number of tokens have been checked here.
"""

from __future__ import annotations

import ctypes as C
import hashlib
import os
import shutil
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from localmoe.backends.llama import log
from localmoe.backends.llama.bindings import L
from localmoe.errors import EngineError
from localmoe.settings import KvType
from localmoe.weights.catalog import Catalog

_DIGEST_NBYTES = 32
_HEAD = struct.Struct("<III")  # llama.cpp's magic, version and token count
_COPY_NBYTES = 1 << 20
_VERSION = b"2 "
_KV_TYPES: tuple[KvType, ...] = ("f16", "q8_0", "q4_0")
"""A state names its type by the place in this list."""


def model_stamp(catalog: Catalog, kv_type: KvType) -> list[int]:
    """Return what stands before the tokens of a state: the model's layout, the cache's type."""
    digest = catalog.resident_digest(_VERSION + catalog.architecture.encode())
    words = np.frombuffer(digest[:16], np.int32)
    return [*(int(word) for word in words), _KV_TYPES.index(kv_type)]


def write(context: int, path: Path, words: list[int], windowed: str | None = None) -> None:
    """Write a context's state behind these words: to a temporary name first, then for good.

    `windowed` is the architecture's name where it has windows. Raises EngineError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    array = (L.llama_token * len(words))(*words)
    log.clear()
    try:
        if windowed:
            _write_whole(context, temporary, bytes(array), windowed)
        elif not L.llama_state_seq_save_file(
            context, str(temporary).encode(), 0, array, len(words)
        ):
            raise EngineError(f"could not write the state to {path}: {log.last_error()}")
        _seal(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise EngineError(f"could not write the state to {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read(context: int, path: Path, capacity: int) -> list[int]:
    """Fill an empty context from a file that `check` found good; return its words.

    `capacity` is how many there may be. Raises EngineError, and leaves the context empty, where
    llama.cpp refuses the file nonetheless.
    """
    array, count = (L.llama_token * capacity)(), C.c_size_t()
    log.clear()
    if not L.llama_state_seq_load_file(
        context, str(path).encode(), 0, array, capacity, C.byref(count)
    ):
        L.llama_memory_clear(L.llama_get_memory(context), True)
        raise EngineError(f"{path} does not fit this context: {log.last_error()}")
    return list(array[: count.value])


def _write_whole(context: int, path: Path, words: bytes, architecture: str) -> None:
    """Write the state of a sequence with all of its cells.

    llama.cpp leaves out those that windows no longer see, and packs the rest together when they
    come back: that could not be rewound, and attention would round differently. The state of the
    whole context has them all, in the same form behind another head.
    """
    whole = path.with_name(path.name + ".whole")
    try:
        if not L.llama_state_save_file(context, str(whole).encode(), (L.llama_token * 1)(), 0):
            raise EngineError(f"could not write the state to {whole}: {log.last_error()}")
        with open(whole, "rb") as source, open(path, "wb") as target:
            name = architecture.encode()
            head = _HEAD.pack(L.LLAMA_SESSION_MAGIC, L.LLAMA_SESSION_VERSION, 0)
            head += struct.pack("<I", len(name)) + name
            if source.read(len(head)) != head:
                raise EngineError("llama.cpp's state of a context has not the form that is known")
            count = len(words) // 4
            target.write(_HEAD.pack(L.LLAMA_STATE_SEQ_MAGIC, L.LLAMA_STATE_SEQ_VERSION, count))
            target.write(words)
            shutil.copyfileobj(source, target, _COPY_NBYTES)
    finally:
        whole.unlink(missing_ok=True)


def _seal(path: Path) -> None:
    """Append the checksum to a file that llama.cpp wrote, and make it durable."""
    with open(path, "rb+") as file:
        digest = _digest(file, os.fstat(file.fileno()).st_size)
        file.write(digest)
        file.flush()
        os.fsync(file.fileno())


def check(path: Path, stamp: list[int], capacity: int) -> None:
    """Raise EngineError unless the file is whole, of this stamp and fits `capacity` tokens."""
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
    *model, kv_type = np.frombuffer(file.read(4 * len(stamp)), np.int32).tolist()
    if model != stamp[:-1]:
        return "it was written for another model"
    if kv_type != stamp[-1]:
        found = _KV_TYPES[kv_type] if 0 <= kv_type < len(_KV_TYPES) else f"number {kv_type}"
        return (
            f"it was saved with a context of type {found}, and this one is {_KV_TYPES[stamp[-1]]}. "
            f"Load the model with --kv-type {found}"
        )
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
