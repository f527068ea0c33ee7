"""The header of one GGUF file: metadata and where each tensor lies, hostile until checked."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from localmoe.errors import ModelFormatError, ModelNotFoundError, UnsupportedModelError
from localmoe.weights.byte_cursor import ByteCursor
from localmoe.weights.file_kinds import describe_bytes
from localmoe.weights.ggml_types import GGML_TYPES, REMOVED_TYPES

Scalar = int | float | bool | str

DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 24
MAX_NAME_NBYTES = 63
MAX_KEY_NBYTES = 65535
MAX_KEYS = 65536
MAX_TENSORS = 1 << 17
MAX_STRING_NBYTES = 16 << 20
MAX_KEPT_NBYTES = 32 << 20
MAX_KEPT_ELEMENTS = 1024
MAX_INT64 = (1 << 63) - 1
MAX_DIMS = 4

_MAGIC = b"GGUF"
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: dict[int, tuple[str, struct.Struct]] = {
    0: ("u8", struct.Struct("<B")),
    1: ("i8", struct.Struct("<b")),
    2: ("u16", struct.Struct("<H")),
    3: ("i16", struct.Struct("<h")),
    4: ("u32", struct.Struct("<I")),
    5: ("i32", struct.Struct("<i")),
    6: ("f32", struct.Struct("<f")),
    _BOOL: ("bool", struct.Struct("<B")),
    10: ("u64", struct.Struct("<Q")),
    11: ("i64", struct.Struct("<q")),
    12: ("f64", struct.Struct("<d")),
}


class LargeArray(NamedTuple):
    """An array that is described, not held: `length` elements of `kind` at byte `offset`.

    Long arrays and every list of strings of the tokenizer become one; `kind` is "str" or a scalar
    kind such as "u32"; `nbytes` is their share of the file.
    """

    kind: str
    length: int
    offset: int
    nbytes: int


Value = Scalar | tuple[Scalar, ...] | LargeArray


class TensorInfo(NamedTuple):
    """A tensor: `shape` is ggml's ne, innermost first, always four numbers.

    `offset` counts from the start of the file, not of its data.
    """

    name: str
    shape: tuple[int, int, int, int]
    type_name: str
    offset: int
    nbytes: int


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
    if "\0" in path:
        raise ModelNotFoundError(f"{path!r} cannot be the name of a file.")
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ModelNotFoundError(f"{path} is not a file. Give the path of a .gguf file.")
        with open(path, "rb", buffering=0) as file:
            return _parse(file, path)
    except OSError as error:
        raise ModelNotFoundError(
            f"cannot read the model file {path}: {error}. Check the path, its permissions and "
            "the disk."
        ) from error


def _parse(file: FileIO, path: str) -> GgufHeader:
    cursor = ByteCursor(file, path, os.fstat(file.fileno()).st_size)
    version = _read_version(cursor)
    n_tensors, n_keys = cursor.u64("the tensor count"), cursor.u64("the key count")
    _check_count(cursor, "keys", n_keys, MAX_KEYS, 14)
    _check_count(cursor, "tensors", n_tensors, MAX_TENSORS, 33)
    metadata, kinds = _read_metadata(cursor, n_keys)
    alignment = _alignment(cursor.path, metadata, kinds)
    relative = _read_tensors(cursor, n_tensors)
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


# ---------------------------------------------------------------- metadata


def _read_metadata(cursor: ByteCursor, n_keys: int) -> tuple[dict[str, Value], dict[str, str]]:
    metadata: dict[str, Value] = {}
    kinds: dict[str, str] = {}
    kept = 0
    for _ in range(n_keys):
        start = cursor.position
        key = _read_name(cursor, "a metadata key", MAX_KEY_NBYTES)
        if key in metadata:
            raise ModelFormatError(f"{cursor.path} has the metadata key {key!r} twice.")
        metadata[key], kinds[key] = _read_value(cursor, key)
        if not isinstance(metadata[key], LargeArray):
            kept += cursor.position - start
        if kept > MAX_KEPT_NBYTES:
            raise ModelFormatError(
                f"{cursor.path} has over {MAX_KEPT_NBYTES} bytes of metadata besides the "
                "tokenizer, which no model needs. It is damaged or hostile."
            )
    return metadata, kinds


def _read_value(cursor: ByteCursor, key: str) -> tuple[Value, str]:
    what = f"the value of {key!r}"
    kind = cursor.u32(what)
    if kind == _STRING:
        return _read_text(cursor, what), "str"
    if kind == _ARRAY:
        return _read_array(cursor, key)
    name, packed = _scalar(cursor, kind, what)
    return _unpack(cursor, packed, kind, 1, what)[0], name


def _scalar(cursor: ByteCursor, kind: int, what: str) -> tuple[str, struct.Struct]:
    if kind not in _SCALARS:
        raise ModelFormatError(
            f"{cursor.path}: {what} has type {kind}, which GGUF does not know here."
        )
    return _SCALARS[kind]


def _unpack(
    cursor: ByteCursor, packed: struct.Struct, kind: int, count: int, what: str
) -> tuple[Scalar, ...]:
    raw = cursor.take(count * packed.size, what)
    if kind != _BOOL:
        return tuple(value for (value,) in packed.iter_unpack(raw))
    if raw.strip(b"\0\1"):
        raise ModelFormatError(f"{cursor.path}: {what} is a truth value other than 0 and 1.")
    return tuple(byte == 1 for byte in raw)


def _read_array(cursor: ByteCursor, key: str) -> tuple[Value, str]:
    what = f"the array {key!r}"
    kind, length = cursor.u32(what), cursor.u64(what)
    offset = cursor.position
    if kind == _STRING:
        _check_length(cursor, key, length, 8)
        if length <= MAX_KEPT_ELEMENTS and not key.startswith("tokenizer."):
            return tuple(_read_text(cursor, what) for _ in range(length)), "[str]"
        cursor.skip_strings(length, what)
        return LargeArray("str", length, offset, cursor.position - offset), "[str]"
    name, packed = _scalar(cursor, kind, what)
    _check_length(cursor, key, length, packed.size)
    if length <= MAX_KEPT_ELEMENTS:
        return _unpack(cursor, packed, kind, length, what), f"[{name}]"
    cursor.skip(length * packed.size, what)
    return LargeArray(name, length, offset, length * packed.size), f"[{name}]"


def _check_length(cursor: ByteCursor, key: str, length: int, least_nbytes: int) -> None:
    if length * least_nbytes > cursor.remaining:
        raise ModelFormatError(
            f"{cursor.path}: the array {key!r} claims {length} elements, but only "
            f"{cursor.remaining} bytes are left of the file. It is truncated or damaged."
        )


def _read_text(cursor: ByteCursor, what: str) -> str:
    return _decode(cursor, _read_bytes(cursor, what, MAX_STRING_NBYTES), what)


def _read_name(cursor: ByteCursor, what: str, most_nbytes: int) -> str:
    raw = _read_bytes(cursor, what, most_nbytes)
    if not raw or b"\0" in raw:
        raise ModelFormatError(f"{cursor.path}: {what} is empty or has a NUL in it: {raw[:80]!r}.")
    return _decode(cursor, raw, what)


def _read_bytes(cursor: ByteCursor, what: str, most_nbytes: int) -> bytes:
    nbytes = cursor.u64(what)
    if nbytes > most_nbytes:
        raise ModelFormatError(
            f"{cursor.path}: {what} claims {nbytes} bytes at byte {cursor.position}, "
            f"but at most {most_nbytes} are allowed. The file is damaged."
        )
    return cursor.take(nbytes, what)


def _decode(cursor: ByteCursor, raw: bytes, what: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFormatError(
            f"{cursor.path}: {what} is not UTF-8 ({error.reason}): {raw[:80]!r}."
        ) from error


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


# ---------------------------------------------------------------- tensors


def _read_tensors(cursor: ByteCursor, count: int) -> list[TensorInfo]:
    """Return the table of tensors; offsets still count from the start of the data."""
    tensors: list[TensorInfo] = []
    names: set[str] = set()
    for index in range(count):
        name = _read_name(cursor, f"the name of tensor {index}", MAX_NAME_NBYTES)
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
