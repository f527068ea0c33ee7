"""The header of one GGUF file: metadata and where each tensor lies, hostile until checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from localmoe.errors import ModelFormatError, ModelNotFoundError, UnsupportedModelError
from localmoe.weights.byte_cursor import WINDOW_NBYTES, ByteCursor, RandomReader
from localmoe.weights.file_kinds import describe_bytes
from localmoe.weights.gguf_tensors import TensorInfo, read_tensors
from localmoe.weights.gguf_values import LargeArray, Value, read_metadata
from localmoe.weights.model_file import open_model_file

DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 24
MAX_KEYS = 65536
MAX_TENSORS = 1 << 17

_MAGIC = b"GGUF"


@dataclass(frozen=True)
class GgufHeader:
    """Everything before a GGUF file's data. `data_offset` is its length, padding included."""

    path: str
    file_nbytes: int
    version: int
    alignment: int
    metadata: Mapping[str, Value]
    kinds: Mapping[str, str]
    """The stored kind of each key: "u32", "str", ..., in brackets for an array: "[f32]"."""
    tensors: tuple[TensorInfo, ...]
    """In the order of the file's table."""
    data_offset: int


def read_header(path: str | Path) -> GgufHeader:
    """Read and check one file's header.

    Raises ModelNotFoundError, ModelFormatError, UnsupportedModelError. Holds a few MiB at most,
    whatever the file says.
    """
    path = os.fspath(path)
    with open_model_file(path, ".gguf") as (file, file_nbytes):
        return parse_header(file, path, file_nbytes)


def read_array(header: GgufHeader, array: LargeArray) -> bytes:
    """Return the stored bytes of an array that the header only describes; the caller bounds them.

    Raises ModelNotFoundError, ModelFormatError if the file changed.
    """
    return read_bytes(header, array.offset, array.nbytes)


def read_bytes(header: GgufHeader, offset: int, nbytes: int) -> bytes:
    """Return so many bytes of the file from `offset` on; the caller bounds them.

    Raises ModelNotFoundError, ModelFormatError if the file changed.
    """
    try:
        with open(header.path, "rb") as file:
            file.seek(offset)
            raw = file.read(nbytes)
    except OSError as error:
        raise ModelNotFoundError(
            f"cannot read {header.path} again: {error.strerror}. Check its permissions and the "
            "disk."
        ) from error
    if len(raw) != nbytes:
        raise ModelFormatError(f"{header.path} became shorter while it was read. Try again.")
    return raw


def parse_header(
    file: RandomReader, path: str, file_nbytes: int, window_nbytes: int = WINDOW_NBYTES
) -> GgufHeader:
    """Read and check the header of an open file of so many bytes, wherever its bytes come from.

    At least a window is read at once. Raises ModelFormatError, UnsupportedModelError, and what
    reading raises.
    """
    cursor = ByteCursor(file, path, file_nbytes, window_nbytes)
    version = _read_version(cursor)
    n_tensors, n_keys = cursor.u64("the tensor count"), cursor.u64("the key count")
    _check_count(cursor, "keys", n_keys, MAX_KEYS, 14)
    _check_count(cursor, "tensors", n_tensors, MAX_TENSORS, 33)
    metadata, kinds = read_metadata(cursor, n_keys)
    alignment = _alignment(cursor.path, metadata, kinds)
    relative = read_tensors(cursor, n_tensors)
    data_offset = cursor.position
    if relative:  # as in ggml: a file without tensors has no data section to pad for
        data_offset = _padded(data_offset, alignment)
    tensors = tuple(t._replace(offset=t.offset + data_offset) for t in relative)
    header = GgufHeader(
        path, cursor.nbytes, version, alignment, metadata, kinds, tensors, data_offset
    )
    _check_extents(header)
    return header


def _read_version(cursor: ByteCursor) -> int:
    path = cursor.path
    if cursor.nbytes == 0:
        raise ModelFormatError(f"{path} is empty. Download it again.")
    start = cursor.take(min(64, cursor.nbytes), "the magic")
    if start[:4] != _MAGIC:
        raise ModelFormatError(
            f"{path} is not a GGUF file: it starts with {start[:4]!r}, not {_MAGIC!r}; "
            f"{describe_bytes(start)}"
        )
    cursor.rewind()
    cursor.skip(4, "the magic")
    version = cursor.u32("the version")
    if version in (2, 3):
        return version
    if version and version & 0xFFFF == 0:
        raise UnsupportedModelError(
            f"{path} is a big-endian GGUF file; only little-endian ones can be run. "
            "Download the little-endian file or convert it with gguf_convert_endian."
        )
    if version == 1 or version > 3:
        raise UnsupportedModelError(
            f"{path} is GGUF version {version}; versions 2 and 3 can be read. "
            "Convert the model again or take a newer localmoe."
        )
    raise ModelFormatError(f"{path} has the impossible GGUF version 0. Download it again.")


def _check_count(cursor: ByteCursor, what: str, count: int, most: int, least_nbytes: int) -> None:
    """Refuse a count that the rest of the file cannot hold or that no model reaches."""
    if count > most or count * least_nbytes > cursor.remaining:
        raise ModelFormatError(
            f"{cursor.path} claims to have {count} {what}, but holds {cursor.remaining} more "
            f"bytes, and no model has over {most}. It is damaged: download it again."
        )


def _alignment(path: str, metadata: Mapping[str, Value], kinds: Mapping[str, str]) -> int:
    key = "general.alignment"
    if key not in metadata:
        return DEFAULT_ALIGNMENT
    value = metadata[key]
    if kinds[key] != "u32" or not isinstance(value, int):
        raise ModelFormatError(f"{path}: {key} must be a u32, not {kinds[key]}.")
    if not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
        raise ModelFormatError(
            f"{path}: {key} is {value}, but must be a power of two up to {MAX_ALIGNMENT}."
        )
    return value


def _check_extents(header: GgufHeader) -> None:
    """Refuse tensors that are unaligned, reach past the end of the file or overlap."""
    path, end, before = header.path, header.data_offset, ""
    for tensor in sorted(header.tensors, key=lambda t: t.offset):
        if (tensor.offset - header.data_offset) % header.alignment:
            raise ModelFormatError(
                f"{path}: tensor {tensor.name!r} lies at byte {tensor.offset}, which is not "
                f"aligned to {header.alignment} bytes."
            )
        if tensor.offset + tensor.nbytes > header.file_nbytes:
            raise ModelFormatError(
                f"{path} is truncated: tensor {tensor.name!r} ends at byte "
                f"{tensor.offset + tensor.nbytes}, but the file has {header.file_nbytes} bytes. "
                "Download it again."
            )
        if tensor.offset < end:
            raise ModelFormatError(
                f"{path}: the tensors {before!r} and {tensor.name!r} overlap at byte "
                f"{tensor.offset}. The file is damaged."
            )
        end, before = tensor.offset + tensor.nbytes, tensor.name


def _padded(nbytes: int, alignment: int) -> int:
    return -(-nbytes // alignment) * alignment
