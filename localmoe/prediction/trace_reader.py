"""Reads recorded routing, in the forms in which people have it."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from localmoe.errors import ModelFormatError, ModelNotFoundError
from localmoe.prediction.trace import Trace
from localmoe.prediction.trace_file import parse_trace

SUFFIXES = (".moetrace", ".npz", ".jsonl")
_MAX_NBYTES = 1 << 30
_MAX_LINE_NBYTES = 1 << 20
_MAX_EXPERT = (1 << 16) - 1
_UNREADABLE = (
    *(ValueError, KeyError, EOFError, SyntaxError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, MemoryError),
)
"""What zipfile and numpy raise for damaged files."""
Array = npt.NDArray[Any]


def is_trace(path: Path) -> bool:
    """Whether a path names a trace, by its ending, and not a model."""
    return path.suffix.lower() in SUFFIXES


def read_trace(path: Path) -> Trace:
    """Read a .moetrace, an .npz or a .jsonl: expert numbers [T, L, K].

    An .npz holds them as `routing`; `layers` [L] has the layers' numbers and `experts` the number
    of experts, if they are there. A line of a .jsonl is one token, [L, K].
    Raises ModelNotFoundError, ModelFormatError.
    """
    readers = {".moetrace": _moetrace, ".npz": _npz, ".jsonl": _jsonl}
    read = readers.get(path.suffix.lower())
    if read is None:
        raise ModelFormatError(f"{path} is no trace: wanted is one of {', '.join(SUFFIXES)}")
    try:
        return read(path)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"there is no file {path}") from error
    except OSError as error:
        raise ModelNotFoundError(f"{path} cannot be read: {error.strerror}") from error
    except ModelFormatError as error:
        raise ModelFormatError(f"{path} is no trace that can be used: {error}") from error


def _moetrace(path: Path) -> Trace:
    with path.open("rb") as file:
        return parse_trace(file)


def _npz(path: Path) -> Trace:
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            names = {Path(name).stem: name for name in archive.namelist()}
            arrays = {
                key: _array(archive, names[key])
                for key in ("routing", "layers", "experts")
                if key in names
            }
    except _UNREADABLE as error:
        raise ModelFormatError(f"its arrays cannot be read ({error})") from error
    if "routing" not in arrays:
        raise ModelFormatError("it needs an array routing [T, L, K]")
    experts = arrays.get("experts")
    n_experts = int(experts) if experts is not None and experts.shape == () else None
    return _trace(arrays["routing"], arrays.get("layers"), n_experts)


def _array(archive: zipfile.ZipFile, name: str) -> Array:
    """Read one array, having compared what it says of its length with what there is."""
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ValueError(f"{name} has the version {version}")
        shape, _, dtype = read_header(member)
    if dtype.kind not in "iu":
        raise ValueError(f"{name} has the type {dtype}, and whole numbers are wanted")
    nbytes = dtype.itemsize * int(np.prod([int(n) for n in shape], dtype=object))
    if nbytes > min(_MAX_NBYTES, archive.getinfo(name).file_size):
        raise ValueError(f"{name} would take {nbytes} bytes")
    with archive.open(name) as member:
        return _plain(member)


def _plain(member: IO[bytes]) -> Array:
    array: Array = np.lib.format.read_array(member, allow_pickle=False)
    return array


def _jsonl(path: Path) -> Trace:
    tokens: list[Array] = []
    nbytes = 0
    with path.open("rb") as file:
        while line := file.readline(_MAX_LINE_NBYTES + 1):
            number = len(tokens) + 1
            nbytes += len(line)
            if len(line) > _MAX_LINE_NBYTES or nbytes > _MAX_NBYTES:
                raise ModelFormatError(f"line {number} goes beyond what a trace may have")
            if line.strip():
                tokens.append(_token(line, number))
            if tokens and tokens[-1].shape != tokens[0].shape:
                raise ModelFormatError(
                    f"line {number} has the shape {tokens[-1].shape}, the first {tokens[0].shape}"
                )
    if not tokens:
        raise ModelFormatError("it has no lines: wanted is one token on each, [L, K]")
    return _trace(np.stack(tokens), None, None)


def _token(line: bytes, number: int) -> Array:
    try:
        value = json.loads(line)
        array = np.array(value)
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"line {number} is no array of numbers ({error})") from error
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise ModelFormatError(f"line {number} is no array of expert numbers [L, K]")
    return array


def _trace(routing: Array, layers: Array | None, n_experts: int | None) -> Trace:
    numbers = np.arange(routing.shape[1]) if layers is None and routing.ndim == 3 else layers
    found = None if numbers is None else numbers.shape
    fits = routing.ndim == 3 and found == routing.shape[1:2] and routing.size
    if not fits or routing.dtype.kind not in "iu" or routing.min() < 0 or numbers is None:
        raise ModelFormatError(
            f"routing has the shape {routing.shape} and layers {found}; wanted are expert numbers "
            "[T, L, K] and layer numbers [L]"
        )
    most = int(routing.max())
    if most > _MAX_EXPERT or len(set(numbers.tolist())) != len(numbers):
        raise ModelFormatError(f"it names expert {most}, or a layer twice")
    count = max(most + 1, min(n_experts or 0, _MAX_EXPERT + 1))
    return Trace(tuple(int(n) for n in numbers), count, routing.astype(np.int32))
