"""Traces that lie: every kind of file ends in one clear error, and nothing large is allocated."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localmoe.errors import ModelFormatError, ModelNotFoundError
from localmoe.prediction.trace import Trace
from localmoe.prediction.trace_file import BLOCK_TOKENS, MAGIC, parse_trace, write_trace
from localmoe.prediction.trace_reader import read_trace

ROUTING = np.random.default_rng(3).integers(0, 7, (BLOCK_TOKENS + 9, 2, 3)).astype(np.int32)
TRACE = Trace((1, 4), 7, ROUTING, {"next_layer": ROUTING - 1}, ROUTING.astype(np.float32))


def written(trace: Trace = TRACE) -> bytes:
    file = io.BytesIO()
    write_trace(file, [trace])
    return file.getvalue()


def with_header(change: dict[str, Any]) -> bytes:
    data = written()
    length = struct.unpack_from("<I", data, 8)[0]
    header = json.dumps({**json.loads(data[12 : 12 + length]), **change}).encode()
    return MAGIC + struct.pack("<I", len(header)) + header + data[12 + length :]


def refused(data: bytes, message: str) -> None:
    with pytest.raises(ModelFormatError, match=message):
        parse_trace(io.BytesIO(data))


def test_what_is_written_is_read_again() -> None:
    found = parse_trace(io.BytesIO(written()))
    assert (found.layers, found.n_experts, found.phase) == ((1, 4), 7, "decode")
    assert np.array_equal(found.routing, ROUTING)
    assert np.array_equal(found.guesses["next_layer"], ROUTING - 1)
    assert found.scores is not None
    assert np.array_equal(found.scores, ROUTING.astype(np.float32))


@pytest.mark.parametrize("kept", [0, 7, 8, 10, 12, 40, 0.5, 0.9, -1])
def test_a_file_that_ends_too_early_is_refused(kept: float) -> None:
    data = written()
    length = int(kept * len(data)) if isinstance(kept, float) else kept
    refused(data[:length], "cut off")


def test_what_follows_the_end_is_refused() -> None:
    refused(written() + b"x", "follows")


LAYER = {"layer": 1, "experts": 7, "used": 3, "part_nbytes": [1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 1"),
        ({"layers": []}, "number of layers"),
        ({"layers": [LAYER, LAYER]}, "not in order"),
        ({"layers": [{**LAYER, "experts": 1 << 40}]}, "number of experts"),
        ({"layers": [{**LAYER, "experts": True}]}, "number of experts"),
        ({"layers": [{**LAYER, "part_nbytes": [-5]}]}, "length of a part"),
        ({"layers": [{**LAYER, "experts": 2}, {**LAYER, "layer": 4}]}, "does not have"),
        ({"layers": "none"}, "no list of layers"),
        ({"columns": [{"name": "routing", "width": 1 << 30}]}, "width"),
        ({"columns": [{"name": "other", "width": 3}]}, "does not know"),
        ({"columns": [{"name": "guess:x", "width": 3}]}, "routing first"),
        ({"columns": [{"name": "routing", "width": 3}]}, "another length"),
        ({"phase": "later"}, "phase"),
    ],
)
def test_headers_that_lie_are_refused(change: dict[str, Any], message: str) -> None:
    refused(with_header(change), message)


def block(n_tokens: int, packed: bytes, checksum: int = 0) -> bytes:
    data = written()
    end_of_header = 12 + struct.unpack_from("<I", data, 8)[0]
    return data[:end_of_header] + struct.pack("<III", n_tokens, len(packed), checksum) + packed


def test_blocks_that_lie_are_refused() -> None:
    bomb = zlib.compress(bytes(1 << 24))
    refused(block(1, bomb), "packed")
    refused(block(100, bomb), "packed|another length")
    refused(block(0xFFFFFFFF, b""), "more than")
    refused(block(1, b"nothing"), "damaged")
    n_bytes = 2 * 3 * (2 + 2 + 4)
    refused(block(1, zlib.compress(bytes(n_bytes)), 1), "checksum")
    refused(block(1, zlib.compress(bytes(n_bytes + 1)), 1), "another length")


def test_a_long_header_and_deep_json_are_refused() -> None:
    refused(MAGIC + struct.pack("<I", 1 << 31), "bytes long")
    deep = b"[" * 100_000
    refused(MAGIC + struct.pack("<I", len(deep)) + deep, "no JSON")


def test_random_damage_is_refused_or_harmless() -> None:
    data, source = written(), random.Random(4)
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(source.randint(1, 4)):
            damaged[source.randrange(len(damaged))] = source.randrange(256)
        try:
            found = parse_trace(io.BytesIO(bytes(damaged)))
        except ModelFormatError:
            continue
        assert found.routing.max() < found.n_experts  # only words of the header were changed


def npy(shape: str, dtype: str = "<i4", data: bytes = b"") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize(
    "content",
    [
        npy("(1000000000000, 2, 3)"),
        npy("(4, 2, 3)"),
        npy("(-1, 2, 3)"),
        npy("(2, 2, 3)", "|O", bytes(200)),
        npy("(2, 2, 3)", "<f4", bytes(48)),
        npy("(2, 6)", data=bytes(48)),
        npy("(2, 2, 3)", data=b"\xff" * 48),
        b"\x93NUMPY\x09\x00",
        b"",
    ],
)
def test_npz_members_that_lie_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "trace.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("routing.npy", content)
    with pytest.raises(ModelFormatError, match="is no trace"):
        read_trace(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[[1, 2], [3]]",
        "[[1.5, 2], [3, 4]]",
        '[["a"]]',
        "[[1, 2]]\n[[1, 2, 3]]",
        "[[-1, 2]]",
        "[[70000]]",
        "[" * 5000,
        "[[1e400]]",
    ],
)
def test_lines_that_are_no_tokens_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(ModelFormatError, match="is no trace"):
        read_trace(path)


def test_lines_are_tokens_and_layers_may_be_left_out(tmp_path: Path) -> None:
    lines, archive = tmp_path / "trace.jsonl", tmp_path / "trace.npz"
    lines.write_text("[[0, 1], [2, 5]]\n\n[[3, 1], [2, 4]]\n")
    np.savez(archive, routing=read_trace(lines).routing, experts=np.int64(9))
    assert (read_trace(lines).n_experts, read_trace(archive).n_experts) == (6, 9)
    assert read_trace(archive).layers == (0, 1)
    assert np.array_equal(read_trace(lines).routing, read_trace(archive).routing)


def test_other_files_are_no_traces(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no file"):
        read_trace(tmp_path / "none.moetrace")
    (tmp_path / "folder.moetrace").mkdir()
    with pytest.raises(ModelNotFoundError, match="cannot be read"):
        read_trace(tmp_path / "folder.moetrace")
    with pytest.raises(ModelFormatError, match="wanted is one of"):
        read_trace(tmp_path / "model.txt")


def test_the_page_on_traces_tells_how_to_write_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "traces.md").read_text()
    monkeypatch.chdir(tmp_path)
    exec(page.split("```python")[1].split("```")[0], {})
    found = read_trace(tmp_path / "mine.moetrace")
    assert (found.n_tokens, len(found.layers), found.n_experts) == (1000, 16, 64)
    assert found.moe_layers[3].expert_nbytes == 1 << 20
