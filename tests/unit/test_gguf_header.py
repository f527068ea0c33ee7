"""A header is read as the reference reader reads it, fast, and big arrays are not held."""

from __future__ import annotations

import ctypes
import time
import tracemalloc
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest

from localmoe.weights.ggml_types import GGML_TYPES, REMOVED_TYPES
from localmoe.weights.gguf_header import read_array, read_header
from localmoe.weights.gguf_values import LargeArray
from raw_gguf import KINDS, RawGguf, tiny

GGML_TYPE_COUNT = 43


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Return a file from the reference writer, with odd sizes and several types."""
    path = tmp_path / "reference.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_uint32("some.u32", 7)
    writer.add_array("some.floats", [1.5, 2.5])
    rng = np.random.default_rng(0)
    writer.add_tensor("a.weight", rng.random((3, 5), dtype=np.float32))
    writer.add_tensor("b.weight", rng.random((7,), dtype=np.float32).astype(np.float16))
    raw = np.zeros((2, 4, 2 * 34), dtype=np.uint8)
    writer.add_tensor("c.weight", raw, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_offsets_and_sizes_are_those_of_the_reference_reader(written: Path) -> None:
    header, reference = read_header(written), gguf.GGUFReader(written)
    assert len(header.tensors) == 3
    for ours, theirs in zip(header.tensors, reference.tensors, strict=True):
        dims = [int(n) for n in theirs.shape]
        assert ours.name == theirs.name
        assert ours.shape == (*dims, *[1] * (4 - len(dims)))
        assert ours.type_name == theirs.tensor_type.name
        assert (ours.offset, ours.nbytes) == (theirs.data_offset, theirs.n_bytes)
    assert header.data_offset == reference.data_offset
    assert header.alignment == 64
    assert header.file_nbytes == written.stat().st_size


def test_block_sizes_are_those_of_the_library() -> None:
    folder = Path(llama_cpp.__file__).parent / "lib"
    ggml = ctypes.CDLL(str(next(folder.glob("*ggml-base.*"))))
    ggml.ggml_type_size.restype = ctypes.c_size_t
    ggml.ggml_blck_size.restype = ctypes.c_int64
    ggml.ggml_type_name.restype = ctypes.c_char_p
    theirs = {}
    for number in range(GGML_TYPE_COUNT):
        sizes = ggml.ggml_blck_size(number), ggml.ggml_type_size(number)
        if all(sizes):
            theirs[number] = (ggml.ggml_type_name(number).decode().upper(), *sizes)
    assert {number: tuple(ours) for number, ours in GGML_TYPES.items()} == theirs
    assert theirs.keys() | REMOVED_TYPES.keys() == set(range(GGML_TYPE_COUNT))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("str", "bool")])
def test_numbers_of_every_kind(tmp_path: Path, kind: str) -> None:
    raw = RawGguf(keys=[("one", kind, 3), ("some", f"[{kind}]", [1, 2])])
    header = read_header(raw.write(tmp_path / "f.gguf"))
    assert header.metadata == {"one": 3, "some": (1, 2)}
    assert header.kinds == {"one": kind, "some": f"[{kind}]"}


def test_texts_and_truth_values(tmp_path: Path) -> None:
    raw = RawGguf(keys=[("t", "str", "grün"), ("b", "bool", True), ("bs", "[bool]", [False, True])])
    metadata = read_header(raw.write(tmp_path / "f.gguf")).metadata
    assert metadata == {"t": "grün", "b": True, "bs": (False, True)}


@pytest.mark.parametrize("version", [2, 3])
def test_versions_that_can_be_read(tmp_path: Path, version: int) -> None:
    raw = tiny()
    raw.version = version
    assert read_header(raw.write(tmp_path / "f.gguf")).version == version


def test_a_file_without_tensors_needs_no_padding(tmp_path: Path) -> None:
    path = RawGguf(keys=[("a", "u8", 1)]).write(tmp_path / "f.gguf")
    assert read_header(path).data_offset == path.stat().st_size


def test_a_long_array_is_described_and_can_be_fetched(tmp_path: Path) -> None:
    values = list(range(5000))
    header = read_header(RawGguf(keys=[("long", "[u16]", values)]).write(tmp_path / "f.gguf"))
    array = header.metadata["long"]
    assert isinstance(array, LargeArray)
    assert (array.kind, array.length, array.nbytes) == ("u16", 5000, 10000)
    assert np.frombuffer(read_array(header, array), dtype="<u2").tolist() == values


def test_a_big_tokenizer_is_passed_quickly_and_not_held(tmp_path: Path) -> None:
    words = [f"token number {i}" for i in range(200_000)]
    raw = tiny().with_key("tokenizer.ggml.tokens", "[str]", words)
    raw = raw.with_key("tokenizer.ggml.merges", "[str]", words)
    raw = raw.with_key("tokenizer.ggml.scores", "[f32]", [0.0] * len(words))
    path = raw.write(tmp_path / "f.gguf")
    started = time.process_time()
    read_header(path)
    assert time.process_time() - started < 1.0
    tracemalloc.start()
    read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
