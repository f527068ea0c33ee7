"""Metadata of a GGUF file: keys and values, hostile until checked."""

from __future__ import annotations

import struct
from typing import NamedTuple

from localmoe.errors import ModelFormatError
from localmoe.weights.byte_cursor import ByteCursor

Scalar = int | float | bool | str

MAX_KEY_NBYTES = 65535
MAX_STRING_NBYTES = 16 << 20
MAX_KEPT_NBYTES = 32 << 20
MAX_KEPT_ELEMENTS = 1024

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


def read_metadata(cursor: ByteCursor, n_keys: int) -> tuple[dict[str, Value], dict[str, str]]:
    """Return the values and the stored kinds of the next `n_keys` keys."""
    metadata: dict[str, Value] = {}
    kinds: dict[str, str] = {}
    kept = 0
    for _ in range(n_keys):
        start = cursor.position
        key = read_name(cursor, "a metadata key", MAX_KEY_NBYTES)
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


def read_name(cursor: ByteCursor, what: str, most_nbytes: int) -> str:
    """Return a name: not empty, UTF-8, without NUL, at most `most_nbytes` long."""
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
