"""Every way in which a header can lie is refused with a message of its own."""

from __future__ import annotations

import os
import re
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from localmoe.errors import ModelError, ModelFormatError, ModelNotFoundError, UnsupportedModelError
from localmoe.weights.gguf import read_catalog
from localmoe.weights.gguf_header import read_header
from raw_gguf import F16, F32, Q4_K, Q8_0, RawGguf, Tensor, array, text, tiny

HUGE = (1 << 63) + 5


def refuse(path: Path, raw: RawGguf | bytes, message: str, kind: type[ModelError]) -> None:
    """Expect that a file is refused, with this in the message, holding hardly any memory."""
    path = path / "model.gguf"
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    tracemalloc.start()
    try:
        with pytest.raises(kind, match=message) as error:
            read_header(path)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert str(path) in str(error.value)
    assert peak < 4 << 20


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04" + bytes(60), "PyTorch"),
        (b"\x80\x02}q\x00" + bytes(60), "pickle"),
        (struct.pack("<Q", 100) + b'{"__metadata__"', "safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b'\n {"error": "not found"}', "JSON"),
        (b"tjgg\x03\x00\x00\x00" + bytes(60), "old GGJT"),
        (b"FUGG" + bytes(60), "big-endian"),
        (bytes(100), "unfinished download"),
        (b"some other text that means nothing", "kind is not known"),
        (b"GG", "kind is not known"),
    ],
)
def test_other_kinds_of_files_are_recognised(tmp_path: Path, start: bytes, message: str) -> None:
    refuse(tmp_path, start, message, ModelFormatError)


@pytest.mark.parametrize(
    ("version", "message", "kind"),
    [
        (0, "impossible GGUF version 0", ModelFormatError),
        (1, "GGUF version 1", UnsupportedModelError),
        (4, "GGUF version 4", UnsupportedModelError),
        (3 << 24, "big-endian", UnsupportedModelError),
    ],
)
def test_other_versions(tmp_path: Path, version: int, message: str, kind: type[ModelError]) -> None:
    refuse(tmp_path, replace(tiny(), version=version), message, kind)


@pytest.mark.parametrize("count", [18, 1 << 17, 1 << 40, (1 << 64) - 1])
def test_absurd_counts(tmp_path: Path, count: int) -> None:
    refuse(tmp_path, RawGguf(n_keys=count), f"claims to have {count} keys", ModelFormatError)
    refuse(tmp_path, RawGguf(n_tensors=count), f"have {count} tensors", ModelFormatError)


def test_a_file_cut_anywhere_in_its_header(tmp_path: Path) -> None:
    path = tiny().write(tmp_path / "model.gguf")
    for nbytes in reversed(range(len(tiny().header()))):
        os.truncate(path, nbytes)
        with pytest.raises(ModelFormatError):
            read_header(path)


def test_a_file_cut_in_its_data(tmp_path: Path) -> None:
    refuse(tmp_path, replace(tiny(), missing_nbytes=1), "is truncated", ModelFormatError)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (struct.pack("<IQ", 8, HUGE), f"claims {HUGE} bytes"),
        (struct.pack("<IQ", 8, 1 << 20), "needs 1048576 bytes"),
        (struct.pack("<IIQ", 9, 8, HUGE), f"claims {HUGE} elements"),
        (struct.pack("<IIQ", 9, 4, HUGE), f"claims {HUGE} elements"),
        (struct.pack("<IIQ", 9, 4, 1 << 20), "claims 1048576 elements"),
        (struct.pack("<IIQQ", 9, 8, 1, HUGE), f"claims {HUGE} bytes"),
        (struct.pack("<IIQIQ", 9, 9, 1, 4, 1), "has type 9"),
        (struct.pack("<IIQ", 9, 13, 0), "has type 13"),
        (struct.pack("<I", 99), "has type 99"),
        (struct.pack("<IB", 7, 2), "other than 0 and 1"),
        (struct.pack("<IIQBB", 9, 7, 2, 1, 255), "other than 0 and 1"),
        (struct.pack("<I", 8) + text(b"\xff\xfe"), "not UTF-8"),
    ],
)
def test_values_that_lie(tmp_path: Path, value: bytes, message: str) -> None:
    refuse(tmp_path, RawGguf(keys=[("key", "raw", value)]), message, ModelFormatError)


def test_a_tokenizer_whose_strings_leave_the_file(tmp_path: Path) -> None:
    value = struct.pack("<IIQ", 9, 8, 3) + text("a") + struct.pack("<Q", HUGE) + bytes(64)
    raw = RawGguf(keys=[("tokenizer.ggml.tokens", "raw", value)])
    refuse(tmp_path, raw, "the array 'tokenizer.ggml.tokens' at byte", ModelFormatError)


@pytest.mark.parametrize("name", ["", "a\0b", b"\xff", "k" * 65536])
def test_keys_that_are_no_names(tmp_path: Path, name: str | bytes) -> None:
    raw = RawGguf(keys=[(name, "u64", 1)])
    refuse(tmp_path, raw, "empty or has a NUL|not UTF-8|at most 65535", ModelFormatError)


@pytest.mark.parametrize("name", ["", "a\0b", b"\xff", "n" * 64])
def test_tensor_names_that_are_no_names(tmp_path: Path, name: str | bytes) -> None:
    raw = RawGguf(tensors=[Tensor(name, (8,), 32)])
    refuse(tmp_path, raw, "empty or has a NUL|not UTF-8|at most 63", ModelFormatError)


def test_the_longest_tensor_name_is_accepted(tmp_path: Path) -> None:
    raw = RawGguf(tensors=[Tensor("n" * 63, (8,), 32)])
    assert read_header(raw.write(tmp_path / "f.gguf")).tensors[0].name == "n" * 63


def test_names_used_twice(tmp_path: Path) -> None:
    raw = RawGguf(keys=[("key", "u8", 1), ("key", "u8", 1)])
    refuse(tmp_path, raw, "key 'key' twice", ModelFormatError)
    raw = RawGguf(tensors=[Tensor("t", (8,), 32), Tensor("t", (8,), 32)])
    refuse(tmp_path, raw, "tensor 't' twice", ModelFormatError)


def test_more_metadata_than_any_model_has(tmp_path: Path) -> None:
    keys = [(f"key{i}", "str", "x" * (15 << 20)) for i in range(3)]
    path = RawGguf(keys=keys).write(tmp_path / "f.gguf")
    with pytest.raises(ModelFormatError, match="besides the tokenizer"):
        read_header(path)


@pytest.mark.parametrize(
    ("dims", "type_id", "message", "kind"),
    [
        ((), F32, "0 dimensions", ModelFormatError),
        ((1, 1, 1, 1, 8), F32, "5 dimensions", ModelFormatError),
        ((8, 0), F32, "impossible shape", ModelFormatError),
        ((1 << 62, 4), F32, "impossible shape", ModelFormatError),
        ((1 << 61,), F32, "impossible shape", ModelFormatError),
        ((1 << 32, 1 << 32), F32, "impossible shape", ModelFormatError),
        ((HUGE,), F32, "impossible shape", ModelFormatError),
        ((33,), Q8_0, "no multiple of the 32", ModelFormatError),
        ((128,), Q4_K, "no multiple of the 256", ModelFormatError),
        ((8,), 43, "unknown type number 43", ModelFormatError),
        ((8,), 0xFFFFFFFF, "unknown type number", ModelFormatError),
        ((32,), 4, "Q4_2", UnsupportedModelError),
        ((32,), 31, "Q4_0_4_4", UnsupportedModelError),
        ((32,), 36, "IQ4_NL_4_4", UnsupportedModelError),
    ],
)
def test_tensors_that_cannot_be(
    tmp_path: Path, dims: tuple[int, ...], type_id: int, message: str, kind: type[ModelError]
) -> None:
    refuse(tmp_path, RawGguf(tensors=[Tensor("t", dims, 32, type_id)]), message, kind)


@pytest.mark.parametrize("value", [0, 3, 48, 1 << 25, 0xFFFFFFFF])
def test_alignments_that_are_none(tmp_path: Path, value: int) -> None:
    raw = RawGguf(keys=[("general.alignment", "u32", value)])
    refuse(tmp_path, raw, "power of two", ModelFormatError)


def test_an_alignment_of_another_type(tmp_path: Path) -> None:
    raw = RawGguf(keys=[("general.alignment", "u64", 32)])
    refuse(tmp_path, raw, "must be a u32, not u64", ModelFormatError)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (0, 16, "not aligned to 32"),
        (0, 32, "overlap"),
        (0, 0, "overlap"),
        (64, 32, "overlap"),
        (0, 1 << 40, "is truncated"),
        (0, (1 << 64) - 32, "is truncated"),
    ],
)
def test_places_that_cannot_be(tmp_path: Path, first: int, second: int, message: str) -> None:
    raw = RawGguf(tensors=[Tensor("a", (12,), 48, offset=first), Tensor("b", (12,), 48)])
    header = replace(raw, tensors=[raw.tensors[0], replace(raw.tensors[1], offset=second)])
    encoded = header.header()
    encoded += bytes(-len(encoded) % 32) + bytes(256)
    refuse(tmp_path, encoded, message, ModelFormatError)


def test_tensors_may_lie_in_any_order_and_with_gaps(tmp_path: Path) -> None:
    tensors = [Tensor("a", (8,), 32, offset=128), Tensor("b", (8,), 16, F16, offset=0)]
    header = read_header(RawGguf(tensors=tensors).write(tmp_path / "f.gguf"))
    assert [t.offset - header.data_offset for t in header.tensors] == [128, 0]


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.gguf", tmp_path, Path("a\0b")):
        with pytest.raises(ModelNotFoundError):
            read_header(path)
    fifo = tmp_path / "fifo.gguf"
    os.mkfifo(fifo)
    with pytest.raises(ModelNotFoundError, match="is not a file"):
        read_header(fifo)


def test_a_huge_sparse_file_costs_nothing(tmp_path: Path) -> None:
    """A string list may point far into a file of many GiB: it is walked, not loaded."""
    value = array("str", ["a"])[:-9] + struct.pack("<Q", 6 << 30)
    path = RawGguf(keys=[("tokenizer.ggml.tokens", "raw", value)]).write(tmp_path / "f.gguf")
    os.truncate(path, 8 << 30)
    tracemalloc.start()
    header = read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert header.metadata["tokenizer.ggml.tokens"].nbytes == (6 << 30) + 8  # type: ignore[union-attr]
    assert peak < 4 << 20


@pytest.mark.parametrize(
    ("name", "kind", "value", "message"),
    [
        ("general.architecture", "u32", 1, "general.architecture"),
        ("general.architecture", "str", "", "general.architecture"),
        ("general.architecture", "str", "llama", "llama.block_count"),
        ("qwen3moe.block_count", "u32", 0, "block_count should be a number from 1 to 512"),
        ("qwen3moe.block_count", "u32", 513, "block_count"),
        ("qwen3moe.block_count", "str", "3", "block_count"),
        ("qwen3moe.nextn_predict_layers", "u32", 3, "nextn_predict_layers"),
        ("qwen3moe.expert_count", "u32", 0, "expert_count should be a number from 1 to 1024"),
        ("qwen3moe.expert_count", "u32", 1025, "expert_count"),
        ("qwen3moe.expert_count", "f32", 4.0, "expert_count"),
        ("qwen3moe.expert_count", "bool", True, "expert_count"),
        ("qwen3moe.expert_count", "u32", 5, "should be the 5 experts"),
        ("qwen3moe.expert_used_count", "u32", 0, "from 1 to the 4 experts"),
        ("qwen3moe.expert_used_count", "u32", 5, "from 1 to the 4 experts"),
    ],
)
def test_metadata_that_contradicts(
    tmp_path: Path, name: str, kind: str, value: object, message: str
) -> None:
    path = tiny().with_key(name, kind, value).write(tmp_path / "f.gguf")
    with pytest.raises(ModelFormatError, match=re.escape(message)):
        read_catalog(path)


@pytest.mark.parametrize(
    "name", ["general.architecture", "qwen3moe.expert_count", "qwen3moe.expert_used_count"]
)
def test_metadata_that_is_missing(tmp_path: Path, name: str) -> None:
    path = tiny().without_key(name).write(tmp_path / "f.gguf")
    with pytest.raises(ModelFormatError, match=re.escape(name)):
        read_catalog(path)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("blk.1.ffn_down_exps.weight", {"name": "blk.1.ffn_down_expz.weight"}),
        ("blk.1.ffn_up_exps.weight", {"name": "blk.1.ffn_gate_up_exps.weight"}),
        ("blk.1.ffn_gate_exps.weight", {"name": "blk.1.ffn_gate_up_exps.weight"}),
        ("blk.1.ffn_up_exps.weight", {"name": "blk.1.ffn_up_exps.bias"}),
        ("blk.1.ffn_up_exps.weight", {"dims": (32, 32)}),
        ("blk.1.ffn_up_exps.weight", {"dims": (32, 4, 8)}),
        ("blk.1.ffn_up_exps.weight", {"dims": (32, 2, 4, 4)}),
    ],
)
def test_expert_tensors_that_do_not_fit(
    tmp_path: Path, name: str, changes: dict[str, object]
) -> None:
    path = tiny().with_tensor(name, **changes).write(tmp_path / "f.gguf")
    with pytest.raises(ModelFormatError, match=r"blk|layer 1"):
        read_catalog(path)
