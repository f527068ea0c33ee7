"""Every way in which a header of safetensors can lie is refused, in little memory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from localmoe.errors import ModelFormatError
from localmoe.weights import safetensors_header
from localmoe.weights.safetensors import read_tensors
from raw_safetensors import ENTRIES, one, raw, refuse, row

HUGE = (1 << 63) + 5


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04\0\0\0\0\0\0" + bytes(60), "nothing is unpickled"),
        (b"\x80\x02\x8a\x0al\xfc\x9c\x46\xf9 jP" + bytes(60), "nothing is unpickled"),
        (b"\x80\x04\x95" + bytes(60), "nothing is unpickled"),
        (b"GGUF\x03\0\0\0" + bytes(60), "it is a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b'{"error": "not found"}', "JSON"),
        (bytes(100), "unfinished download"),
        (b"some other text that means nothing", "kind is not known"),
        (b"1234", "is truncated"),
    ],
)
def test_other_kinds_of_files_are_recognised(tmp_path: Path, start: bytes, message: str) -> None:
    refuse(tmp_path, start, message)


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "pytorch_model.bin.index.json"])
def test_pickles_are_refused_by_their_names(tmp_path: Path, name: str) -> None:
    refuse(tmp_path / name, b"anything", "nothing is unpickled")


@pytest.mark.parametrize("nbytes", [0, 1, 100_000_001, 1 << 40, HUGE, (1 << 64) - 1])
def test_absurd_lengths(tmp_path: Path, nbytes: int) -> None:
    refuse(tmp_path, raw(ENTRIES, header_nbytes=nbytes), f"are {nbytes} and")


def test_a_header_longer_than_the_file(tmp_path: Path) -> None:
    whole = raw(ENTRIES)
    refuse(tmp_path, raw(ENTRIES, header_nbytes=len(whole)), "of its header.* 8 bytes are missing")
    refuse(tmp_path, raw(b"", b"", header_nbytes=100_000_000), " 100000000 bytes are missing")


def test_a_file_cut_anywhere(tmp_path: Path) -> None:
    whole, path = raw(ENTRIES), tmp_path / "model.safetensors"
    path.write_bytes(whole)
    for nbytes in reversed(range(len(whole))):
        os.truncate(path, nbytes)
        with pytest.raises(ModelFormatError, match="truncated|is empty"):
            read_tensors(path)


@pytest.mark.parametrize("missing", [1, 10, 16])
def test_a_truncated_shard_says_how_much_is_missing(tmp_path: Path, missing: int) -> None:
    wanted = f"{missing} bytes are missing. The download may be incomplete: pull it again"
    refuse(tmp_path, raw(ENTRIES)[:-missing], wanted)


def test_a_huge_header_in_a_sparse_file_is_held_once(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw(b'{"t', b"", header_nbytes=100_000_000))
    os.truncate(path, 8 << 30)
    refuse(path, None, "should have a string", most_nbytes=220_000_000)


def test_small_values_do_not_grow(tmp_path: Path) -> None:
    """Lists of empty lists would take twenty times their length."""
    refuse(tmp_path, raw(b'{"t":[' + b"[]," * 500_000 + b"[]]}"), "JSON of at most 4096 bytes")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"\xff": 1}', "is not UTF-8"),
        (b'{"t\xc3', "is not UTF-8"),
        (b"{}x", "goes on after the end"),
        (b"{} {}", "goes on after the end"),
        (b"{ ", "should have a string"),
        (b"{1: 2}", "should have a string"),
        (b"{'t': 2}", "should have a string"),
        (b'{"a\nb": 2}', "should have a string"),
        (b'{"t" 2}', "should have b':'"),
        (b'{"t": }', "should have JSON"),
        (b'{"t": nul}', "should have JSON"),
        (b'{"t": NaN}', "NaN is not allowed"),
        (b'{"t": {"dtype": -Infinity}}', "-Infinity is not allowed"),
        (b'{"t": ' + b"9" * 4090 + b"}", "should be described by"),
        (b'{"t": ' + b"[" * 2000 + b"}", "nested too deep"),
        (b'{"t": ' + b'{"a":' * 800 + b"}", "nested too deep|should have JSON"),
        (b'{"\\ud800": 1}', "an escape .* that means nothing"),
        (b'{"\\x": 1}', "an escape .* that means nothing"),
        (b'{"": 1}', "empty or has a NUL"),
        (b'{"a\\u0000": 1}', "empty or has a NUL"),
        (b'{"' + b"n" * 1025 + b'": 1}', "at most 1024 bytes"),
    ],
)
def test_headers_that_are_no_json_object(tmp_path: Path, header: bytes, message: str) -> None:
    refuse(tmp_path, raw(header), message)


def test_a_header_that_is_a_list(tmp_path: Path) -> None:
    refuse(tmp_path, raw(b"[1, 2]"), "should begin with '{'")
    refuse(tmp_path, raw(b"  " + json.dumps(ENTRIES).encode()), "should begin with '{'")


def test_names_used_twice(tmp_path: Path) -> None:
    entry = json.dumps(ENTRIES["b"]).encode()
    refuse(tmp_path, raw(b'{"t": %s, "\\u0074": %s}' % (entry, entry)), "has 't' twice")
    refuse(tmp_path, raw(b'{"__metadata__": {}, "__metadata__": {}}'), "'__metadata__' twice")
    refuse(tmp_path, raw(b'{"__metadata__": {"k": "", "k": ""}}'), "'k' twice")
    refuse(
        tmp_path,
        raw(b'{"t": {"dtype": "U8", "dtype": "U8", "shape": [16], "data_offsets": [0, 16]}}'),
        "each once",
    )


@pytest.mark.parametrize("metadata", [None, [], "text", 1, {"k": 1}, {"k": None}, {"k": {}}])
def test_metadata_that_is_no_map_of_strings(tmp_path: Path, metadata: object) -> None:
    refuse(tmp_path, raw({"__metadata__": metadata}), "should have .* __metadata__")


@pytest.mark.parametrize("value", [1, "text", [], None, {}, {"dtype": "U8"}, {"x": 1}])
def test_tensors_that_are_not_described(tmp_path: Path, value: object) -> None:
    refuse(tmp_path, raw({"t": value}), "should be described by dtype, shape and data_offsets")


def test_a_description_with_more_than_is_known(tmp_path: Path) -> None:
    header = one()
    header["t"] = {**header["t"], "strides": [1]}  # type: ignore[dict-item]
    refuse(tmp_path, raw(header, bytes(4)), "should be described by")


@pytest.mark.parametrize("dtype", ["", "u8", "BF17", "F8", 8, None, ["U8"], "U8 ", "x" * 3000])
def test_unknown_types(tmp_path: Path, dtype: object) -> None:
    refuse(tmp_path, raw(one(dtype), bytes(4)), "unknown dtype")


@pytest.mark.parametrize(
    "shape",
    [4, "4", None, {}, [-4], [4.0], ["4"], [True, 4], [[4]], [1] * 16 + [4], [HUGE], [None]],
)
def test_shapes_that_cannot_be(tmp_path: Path, shape: object) -> None:
    refuse(tmp_path, raw(one(shape=shape), bytes(4)), "should have a shape of at most 16 integers")


@pytest.mark.parametrize(
    "offsets",
    [
        4,
        None,
        "04",
        [],
        [0],
        [0, 4, 4],
        [-4, 0],
        [0, 4.0],
        [False, 4],
        ["0", "4"],
        [4, 0],
        [0, HUGE],
    ],
)
def test_offsets_that_cannot_be(tmp_path: Path, offsets: object) -> None:
    refuse(tmp_path, raw(one(offsets=offsets), bytes(4)), "should have two offsets")


@pytest.mark.parametrize(
    ("dtype", "shape", "nbytes"),
    [
        ("U8", [5], 4),
        ("U8", [3], 4),
        ("F32", [], 8),
        ("U8", [0], 4),
        ("BF16", [1 << 62, 1 << 62], 4),
        ("U8", [1 << 32, 1 << 32], 0),
        ("F4", [3], 1),
        ("F4", [3], 2),
        ("F6_E2M3", [3], 2),
        ("F6_E3M2", [3], 3),
    ],
)
def test_shapes_of_another_size_than_the_data(
    tmp_path: Path, dtype: str, shape: list[int], nbytes: int
) -> None:
    refuse(tmp_path, raw(one(dtype, shape, [0, nbytes]), bytes(nbytes)), "bytes of data")


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([(0, 8), (4, 16)], "overlap"),
        ([(0, 16), (4, 8)], "overlap"),
        ([(0, 16), (0, 16)], "overlap"),
        ([(0, 16), (8, 8)], "overlap"),
        ([(1, 16)], "leave a gap"),
        ([(0, 4), (8, 16)], "leave a gap"),
        ([(0, 16), (17, 17)], "leave a gap"),
        ([(0, 8)], "8 bytes behind its last tensor"),
        ([], "16 bytes behind its last tensor"),
        ([(0, 17)], "of which 1 bytes are missing"),
        ([(0, 16), (16, 1 << 62)], "bytes are missing"),
    ],
)
def test_places_that_cannot_be(tmp_path: Path, places: list[tuple[int, int]], message: str) -> None:
    refuse(tmp_path, raw(row(*places)), message)


def test_more_tensors_than_any_model_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_header, "MAX_TENSORS", 3)
    refuse(tmp_path, raw(row(*[(i, i + 4) for i in range(0, 16, 4)])), "more than 3 entries")
