"""The format .moetrace: a header that says what was recorded, then blocks of tokens.

docs/traces.md has it byte by byte. Everything in a file is hostile until checked: no length is
believed before it is compared with what the header allows, and nothing is unpickled.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from localmoe.errors import ModelFormatError
from localmoe.prediction.trace import NO_GUESS, Trace, made_up_layer
from localmoe.weights.catalog import MoeLayer

MAGIC = b"MOETRACE"
FORMAT = 1
BLOCK_TOKENS = 512
_LENGTH, _BLOCK = struct.Struct("<I"), struct.Struct("<III")
_MAX_HEADER_NBYTES = 1 << 20
_MAX_NBYTES = 1 << 30
"""Of all blocks, unpacked."""
_MOST = {"layers": 4096, "experts": 1 << 16, "used": 1024, "parts": 16, "columns": 32}
_MAX_PART_NBYTES = 1 << 40
_ROUTING, _SCORES, _GUESS = "routing", "scores", "guess:"
_TYPES = {_ROUTING: "<u2", _SCORES: "<f2", _GUESS: "<i4"}
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Column:
    """An array of every block: [tokens, L, width]."""

    name: str
    width: int

    @property
    def dtype(self) -> np.dtype[Any]:
        kind = _GUESS if self.name.startswith(_GUESS) else self.name
        return np.dtype(_TYPES[kind])

    def nbytes(self, n_layers: int) -> int:
        """Bytes of one token."""
        return n_layers * self.width * self.dtype.itemsize


def write_trace(file: BinaryIO, pieces: Iterable[Trace]) -> int:
    """Write traces of one model, one after the other, as they come. Returns the tokens.

    Raises ValueError if there is no piece, or one that has other columns than the first.
    """
    columns: list[_Column] = []
    n_tokens = 0
    for piece in pieces:
        found = _columns(piece)
        if not columns:
            columns = found
            header = json.dumps(_header(piece, columns)).encode()
            file.write(MAGIC + _LENGTH.pack(len(header)) + header)
        if found != columns:
            raise ValueError(f"a piece has the columns {found}, the first one {columns}")
        for start in range(0, piece.n_tokens, BLOCK_TOKENS):
            _write_block(file, piece, columns, slice(start, start + BLOCK_TOKENS))
        n_tokens += piece.n_tokens
    if not columns:
        raise ValueError("a trace needs tokens")
    file.write(_BLOCK.pack(0, 0, 0))
    return n_tokens


def parse_trace(file: BinaryIO) -> Trace:
    """Read a whole trace. Raises ModelFormatError that says what is wrong, without the path."""
    if _exactly(file, len(MAGIC)) != MAGIC:
        raise ModelFormatError("it does not begin as a .moetrace does")
    length = _LENGTH.unpack(_exactly(file, _LENGTH.size))[0]
    if length > _MAX_HEADER_NBYTES:
        raise ModelFormatError(f"its header would be {length} bytes long")
    try:
        header = json.loads(_exactly(file, length))
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"its header is no JSON ({error})") from error
    shape, columns = _parse_header(header)
    blocks = list(_blocks(file, columns, len(shape.layers)))
    if not blocks:
        raise ModelFormatError("it has no tokens")
    arrays = {
        column.name: np.concatenate([block[at] for block in blocks])
        for at, column in enumerate(columns)
    }
    return _checked(shape, arrays)


def _columns(trace: Trace) -> list[_Column]:
    columns = [_Column(_ROUTING, trace.n_experts_used)]
    if trace.scores is not None:
        columns.append(_Column(_SCORES, trace.n_experts_used))
    return columns + [_Column(_GUESS + name, g.shape[2]) for name, g in trace.guesses.items()]


def _header(trace: Trace, columns: Iterable[_Column]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "model": trace.model,
        "catalog": trace.catalog,
        "phase": trace.phase,
        "layers": [
            {
                "layer": layer.layer,
                "experts": layer.n_experts,
                "used": layer.n_experts_used,
                "part_nbytes": list(layer.part_nbytes),
            }
            for layer in trace.sized_layers()
        ],
        "columns": [{"name": column.name, "width": column.width} for column in columns],
    }


def _write_block(file: BinaryIO, trace: Trace, columns: list[_Column], tokens: slice) -> None:
    arrays: dict[str, Array | None] = {_ROUTING: trace.routing, _SCORES: trace.scores}
    arrays |= {_GUESS + name: guessed for name, guessed in trace.guesses.items()}
    cut = [(column, arrays[column.name]) for column in columns]
    raw = b"".join(a[tokens].astype(c.dtype).tobytes() for c, a in cut if a is not None)
    packed = zlib.compress(raw, 6)
    n_tokens = len(trace.routing[tokens])
    file.write(_BLOCK.pack(n_tokens, len(packed), zlib.crc32(raw)) + packed)


def _exactly(file: BinaryIO, nbytes: int) -> bytes:
    found = file.read(nbytes)
    if len(found) != nbytes:
        raise ModelFormatError("it ends too early: the recording was cut off")
    return found


def _count(value: object, least: int, most: int, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ModelFormatError(f"its {what} is {value!r}; wanted is {least} to {most}")
    return value


def _items(header: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = header.get(key)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ModelFormatError(f"its header has no list of {key}")
    _count(len(found), 1, _MOST[key], f"number of {key}")
    return found


def _parse_header(header: Any) -> tuple[Trace, list[_Column]]:
    """Return a trace without tokens, and the columns of its blocks."""
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ModelFormatError(f"it is not of format {FORMAT}: a newer localmoe may read it")
    layers = tuple(_layer(item) for item in _items(header, "layers"))
    numbers = tuple(layer.layer for layer in layers)
    if list(numbers) != sorted(set(numbers)):
        raise ModelFormatError(f"its layers are not in order: {numbers}")
    columns = [_column(item) for item in _items(header, "columns")]
    names = [column.name for column in columns]
    if names[0] != _ROUTING or len(set(names)) != len(names):
        raise ModelFormatError(f"its columns are {names}; wanted is routing first, each once")
    if any(c.width != columns[0].width for c in columns if c.name == _SCORES):
        raise ModelFormatError("it has not one score for each expert")
    if header.get("phase") not in ("decode", "prefill"):
        raise ModelFormatError(f"its phase is {header.get('phase')!r}: wanted is decode or prefill")
    empty = np.zeros((0, len(layers), columns[0].width), np.int32)
    trace = Trace(numbers, max(layer.n_experts for layer in layers), empty, moe_layers=layers)
    model, catalog = (str(header.get(key, ""))[:256] for key in ("model", "catalog"))
    return replace(trace, model=model, catalog=catalog, phase=header["phase"]), columns


def _layer(item: Mapping[str, Any]) -> MoeLayer:
    parts = item.get("part_nbytes")
    if not isinstance(parts, list) or not 1 <= len(parts) <= _MOST["parts"]:
        raise ModelFormatError(f"a layer has the parts {parts!r}: wanted are 1 to 16 lengths")
    return made_up_layer(
        _count(item.get("layer"), 0, _MOST["experts"], "layer number"),
        _count(item.get("experts"), 1, _MOST["experts"], "number of experts"),
        _count(item.get("used"), 1, _MOST["used"], "number of experts used"),
        tuple(_count(nbytes, 1, _MAX_PART_NBYTES, "length of a part") for nbytes in parts),
    )


def _column(item: Mapping[str, Any]) -> _Column:
    name = item.get("name")
    if not isinstance(name, str) or not (name in _TYPES or name.startswith(_GUESS)):
        raise ModelFormatError(f"it has a column {name!r}, which format {FORMAT} does not know")
    return _Column(name[:64], _count(item.get("width"), 1, _MOST["used"], "width of a column"))


def _blocks(file: BinaryIO, columns: list[_Column], n_layers: int) -> Iterator[list[Array]]:
    left = _MAX_NBYTES
    token_nbytes = sum(column.nbytes(n_layers) for column in columns)
    while True:
        n_tokens, packed_nbytes, checksum = _BLOCK.unpack(_exactly(file, _BLOCK.size))
        if n_tokens == 0:
            if file.read(1):
                raise ModelFormatError("something follows its end")
            return
        nbytes = n_tokens * token_nbytes
        left -= nbytes
        if left < 0:
            raise ModelFormatError(f"it would take more than {_MAX_NBYTES} bytes")
        if packed_nbytes > nbytes + 1024:
            raise ModelFormatError(f"a block of {nbytes} bytes takes {packed_nbytes} packed")
        raw = _unpacked(_exactly(file, packed_nbytes), nbytes)
        if zlib.crc32(raw) != checksum:
            raise ModelFormatError("a block is damaged: its checksum is wrong")
        yield _split(raw, columns, n_tokens, n_layers)


def _unpacked(packed: bytes, nbytes: int) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(packed, nbytes + 1)
    except zlib.error as error:
        raise ModelFormatError(f"a block is damaged ({error})") from error
    if len(raw) != nbytes or not unpacker.eof:
        raise ModelFormatError("a block has another length than it says")
    return raw


def _split(raw: bytes, columns: list[_Column], n_tokens: int, n_layers: int) -> list[Array]:
    arrays, start = [], 0
    for column in columns:
        count = n_tokens * n_layers * column.width
        array = np.frombuffer(raw, column.dtype, count, start)
        arrays.append(array.reshape(n_tokens, n_layers, column.width))
        start += n_tokens * column.nbytes(n_layers)
    return arrays


def _checked(shape: Trace, arrays: Mapping[str, Array]) -> Trace:
    experts = np.array([layer.n_experts for layer in shape.moe_layers])[:, None]
    if (arrays[_ROUTING] >= experts).any():
        raise ModelFormatError("a token uses an expert that its layer does not have")
    guesses = {}
    for name, array in arrays.items():
        if name.startswith(_GUESS):
            if ((array < NO_GUESS) | (array >= experts)).any():
                raise ModelFormatError("a guess names an expert that its layer does not have")
            guesses[name.removeprefix(_GUESS)] = array.astype(np.int32)
    scores = arrays[_SCORES].astype(np.float32) if _SCORES in arrays else None
    return replace(shape, routing=arrays[_ROUTING].astype(np.int32), guesses=guesses, scores=scores)
