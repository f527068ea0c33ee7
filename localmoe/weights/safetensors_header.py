"""The header of one safetensors file: what each tensor is and where it lies, hostile until checked.

Eight bytes say how long the header is; it is a JSON object of tensors by name, and the rest of the
file is their data, without gaps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from localmoe.errors import ModelFormatError
from localmoe.weights.byte_cursor import ByteCursor
from localmoe.weights.catalog import Extent
from localmoe.weights.file_kinds import describe_bytes
from localmoe.weights.json_cursor import JsonCursor
from localmoe.weights.model_file import open_model_file

SUFFIX = ".safetensors"
MAX_HEADER_NBYTES = 100_000_000  # the format's own limit
MAX_TENSORS = 1 << 20
"""Of a checkpoint: four times what the largest one has that stores expert by expert, with scales.
What is held of so many is some hundred MiB."""
MAX_NAME_NBYTES = 1024
MAX_DIMS = 16

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".bin.index.json")
"""How files of pickled tensors are named, and the index of such."""
_PICKLE_STARTS = (*(bytes((0x80, n)) for n in range(1, 6)), b"PK\x03\x04")
_ENTRY_NBYTES = 4096
_MAX_METADATA_KEYS = 1 << 16
_MAX_METADATA_NBYTES = 16 << 20  # of one string: some writers keep a training's history there
_MAX_INT64 = (1 << 63) - 1
_MISSING_HINT = "The download may be incomplete: pull it again."

_NAMES_BY_BITS = {
    4: ("F4",),
    6: ("F6_E2M3", "F6_E3M2"),
    8: ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"),
    16: ("I16", "U16", "F16", "BF16"),
    32: ("I32", "U32", "F32"),
    64: ("C64", "F64", "I64", "U64"),
}
DTYPE_BITS = {name: bits for bits, names in _NAMES_BY_BITS.items() for name in names}
"""Bits of one element. Those of less than a byte are packed: a tensor fills whole bytes, and its
shape counts elements."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a checkpoint; `dtype` is the format's own word, such as BF16 or F8_E4M3."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    extent: Extent


class _Entry(NamedTuple):
    """A tensor as the header has it: offsets count from the start of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_file_tensors(path: str) -> list[StoredTensor]:
    """Return one file's tensors, in the order of their data.

    Raises ModelNotFoundError, ModelFormatError. Holds the header and its tensors, nothing else.
    """
    if path.endswith(PICKLES):
        raise pickle_error(path)
    with open_model_file(path, SUFFIX) as (file, file_nbytes):
        header = take_header(ByteCursor(file, path, file_nbytes))
    data_start = 8 + len(header)
    entries = sorted(_parse(header, path), key=lambda entry: (entry.begin, entry.end))
    _check_places(path, entries, file_nbytes - data_start)
    return [
        StoredTensor(e.name, e.dtype, e.shape, Extent(path, data_start + e.begin, e.end - e.begin))
        for e in entries
    ]


def take_header(cursor: ByteCursor) -> bytes:
    """Return the header of the file that the cursor stands at the start of, not yet looked into.

    Raises ModelFormatError where it cannot be one, and what reading raises.
    """
    return cursor.take(_header_nbytes(cursor), "the header")


def pickle_error(path: str) -> ModelFormatError:
    """Return the refusal of a pickle."""
    return ModelFormatError(
        f"{path} is a Python pickle, which can run any code when it is opened: nothing is "
        f"unpickled here. Give a model in {SUFFIX} files, or convert it where you trust it."
    )


def _header_nbytes(cursor: ByteCursor) -> int:
    """Take the length; refuse what it cannot be."""
    path = cursor.path
    if cursor.nbytes == 0:
        raise ModelFormatError(f"{path} is empty. {_MISSING_HINT}")
    start = cursor.take(min(64, cursor.nbytes), "the start")
    cursor.rewind()
    nbytes = cursor.u64("the length of the header")
    if not 2 <= nbytes <= MAX_HEADER_NBYTES or start[8:9] not in (b"{", b""):
        if start.startswith(_PICKLE_STARTS):  # not before: a length may begin so, too
            raise pickle_error(path)
        raise ModelFormatError(
            f"{path} is no {SUFFIX} file: the length of its header should be 2 to "
            f"{MAX_HEADER_NBYTES} and the header should begin with '{{', but they are {nbytes} and "
            f"{start[8:9]!r}; {describe_bytes(start, SUFFIX)}"
        )
    if nbytes > cursor.remaining:
        raise ModelFormatError(
            f"{path} is truncated: of its header of {nbytes} bytes, {nbytes - cursor.remaining} "
            f"bytes are missing. {_MISSING_HINT}"
        )
    return nbytes


def _parse(header: bytes, path: str) -> Iterable[_Entry]:
    cursor = JsonCursor(header, path)
    for name in cursor.members("the header", MAX_NAME_NBYTES, MAX_TENSORS):
        if name == "__metadata__":
            for key in cursor.members(name, MAX_NAME_NBYTES, _MAX_METADATA_KEYS):
                cursor.string(f"{key!r} in {name}", _MAX_METADATA_NBYTES)
        else:
            yield _entry(cursor, name)
    cursor.end()


def _entry(cursor: JsonCursor, name: str) -> _Entry:
    """Take the description of one tensor and check what can be checked of it alone."""
    path, value = cursor.path, cursor.value(f"tensor {name!r}", _ENTRY_NBYTES)
    pairs = value[0] if isinstance(value, tuple) else []
    found = dict(pairs)
    if len(pairs) != 3 or found.keys() != {"dtype", "shape", "data_offsets"}:
        keys = [key for key, _ in pairs][:8] if isinstance(value, tuple) else str(value)[:80]
        raise ModelFormatError(
            f"{path}: tensor {name!r} should be described by dtype, shape and data_offsets, each "
            f"once, but has {keys}. It is damaged, or made for a newer reader."
        )
    dtype, shape, offsets = found["dtype"], found["shape"], found["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise ModelFormatError(
            f"{path}: tensor {name!r} has the unknown dtype {str(dtype)[:80]!r}; known are "
            f"{', '.join(sorted(DTYPE_BITS))}. Pull it again, or take a newer localmoe."
        )
    if not _are_counts(shape) or len(shape) > MAX_DIMS:
        raise ModelFormatError(
            f"{path}: tensor {name!r} should have a shape of at most {MAX_DIMS} integers, none "
            f"negative or over {_MAX_INT64}, but has {str(shape)[:80]}. It is damaged: pull it "
            "again."
        )
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ModelFormatError(
            f"{path}: tensor {name!r} should have two offsets of its data, from 0 to {_MAX_INT64} "
            f"and the end not before the beginning, but has {str(offsets)[:80]}. It is damaged: "
            "pull it again."
        )
    begin, end = offsets
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits != 8 * (end - begin):
        raise ModelFormatError(
            f"{path}: tensor {name!r} of {dtype} and shape {shape} has {bits} bits, but "
            f"{end - begin} bytes of data. It is damaged: pull it again."
        )
    return _Entry(name, dtype, tuple(shape), begin, end)


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n <= _MAX_INT64 for n in value)


def _check_places(path: str, entries: Iterable[_Entry], data_nbytes: int) -> None:
    """Refuse overlaps, gaps, and data that is not all there or not all described."""
    end, before = 0, "the header"
    for entry in entries:
        if entry.begin != end:
            what = "overlap" if entry.begin < end else "leave a gap"
            raise ModelFormatError(
                f"{path}: {before} and tensor {entry.name!r} {what}: one ends at byte {end} of "
                f"the data, the other begins at {entry.begin}. It is damaged: pull it again."
            )
        end, before = entry.end, f"tensor {entry.name!r}"
    if end > data_nbytes:
        raise ModelFormatError(
            f"{path} is truncated: its header describes {end} bytes of data, of which "
            f"{end - data_nbytes} bytes are missing. {_MISSING_HINT}"
        )
    if end < data_nbytes:
        raise ModelFormatError(
            f"{path}: {data_nbytes - end} bytes behind its last tensor belong to none. It is "
            "damaged: pull it again."
        )
