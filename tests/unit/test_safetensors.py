"""What the safetensors library writes is found where it lies, in one file and in several."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import TensorSpec, serialize_file
from safetensors.numpy import save_file

from localmoe.errors import ModelFormatError, ModelNotFoundError
from localmoe.weights.catalog import Extent
from localmoe.weights.safetensors import StoredTensor, read_tensors
from localmoe.weights.safetensors_header import DTYPE_BITS
from raw_safetensors import DATA, ENTRIES, one, raw, row

Arrays = Mapping[str, NDArray[np.generic]]
RNG = np.random.default_rng(3)
NUMPY_TYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "I16": np.int16,
    "U16": np.uint16,
    "F16": np.float16,
    "I32": np.int32,
    "U32": np.uint32,
    "F32": np.float32,
    "I64": np.int64,
    "U64": np.uint64,
    "F64": np.float64,
    "C64": np.complex64,
}
WRITERS_NAMES = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F4": "float4_e2m1fn_x2",
}
"""What numpy has no type for, by the library's names."""


def arrays(dtype: type[np.generic] = np.float32) -> dict[str, NDArray[np.generic]]:
    return {
        f"model.layers.{i}.mlp.experts.{i}.up_proj.weight": RNG.integers(0, 2, shape).astype(dtype)
        for i, shape in enumerate([(3, 5), (7,), (), (2, 0, 4), (1, 2, 3, 4)])
    }


def stored_bytes(tensor: StoredTensor) -> bytes:
    with open(tensor.extent.path, "rb") as file:
        file.seek(tensor.extent.offset)
        return file.read(tensor.extent.nbytes)


def check(found: Mapping[str, StoredTensor], wanted: Arrays) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert (found[name].name, found[name].shape) == (name, array.shape)
        assert stored_bytes(found[name]) == array.tobytes()


def write_shards(directory: Path, files: Mapping[str, Arrays], **changes: object) -> Path:
    """Write files and their index; `changes` are of its weight_map."""
    for name, held in files.items():
        save_file(dict(held), directory / name)
    names = {tensor: name for name, held in files.items() for tensor in held}
    index = {"metadata": {"total_size": 12.5}, "weight_map": {**names, **changes}}
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps(index, indent=2))
    return path


def halves() -> dict[str, Arrays]:
    items = list(arrays().items())
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    return {names[0]: dict(items[:2]), names[1]: dict(items[2:])}


@pytest.mark.parametrize("dtype", NUMPY_TYPES)
def test_every_type_that_numpy_has(tmp_path: Path, dtype: str) -> None:
    wanted = arrays(NUMPY_TYPES[dtype])
    save_file(wanted, tmp_path / "model.safetensors", {"format": "np"})
    found = read_tensors(tmp_path)
    check(found, wanted)
    assert {tensor.dtype for tensor in found.values()} == {dtype}


@pytest.mark.parametrize("dtype", WRITERS_NAMES)
def test_every_other_type_that_the_library_writes(tmp_path: Path, dtype: str) -> None:
    data = RNG.integers(0, 256, 24, np.uint8)
    n_units = data.nbytes * 8 // max(8, DTYPE_BITS[dtype])
    spec = TensorSpec(
        dtype=WRITERS_NAMES[dtype],
        shape=[2, n_units // 2],
        data_ptr=data.ctypes.data,
        data_len=data.nbytes,
    )
    serialize_file({"t": spec}, str(tmp_path / "t.safetensors"))
    found = read_tensors(tmp_path)["t"]
    assert (found.dtype, stored_bytes(found)) == (dtype, data.tobytes())
    # Elements, not bytes: the library doubles the last dimension of what is packed in pairs.
    assert found.shape == (2, 24 if dtype == "F4" else n_units // 2)


@pytest.mark.parametrize("dtype", ["F6_E2M3", "F6_E3M2"])
def test_six_bits_are_packed(tmp_path: Path, dtype: str) -> None:
    (tmp_path / "t.safetensors").write_bytes(raw(one(dtype, [2, 4], [0, 6]), bytes(6)))
    assert read_tensors(tmp_path)["t"].extent.nbytes == 6


def test_all_types_are_tested() -> None:
    assert {*NUMPY_TYPES, *WRITERS_NAMES, "F6_E2M3", "F6_E3M2"} == DTYPE_BITS.keys()


def test_headers_may_be_padded_spaced_and_escaped(tmp_path: Path) -> None:
    text = json.dumps({**ENTRIES, "\u00e9\n": ENTRIES["b"]}).replace("[12, 16]", "[ 12,\n16 ]", 1)
    text = text.replace("[12, 16]", "[16, 20]").replace(":", "\t: ") + " \n  "
    path = tmp_path / "t.safetensors"
    path.write_bytes(raw(text.encode(), DATA + bytes(4)))
    found = read_tensors(path)
    assert found["\u00e9\n"].extent == Extent(str(path), 8 + len(text) + 16, 4)
    assert list(found) == ["a", "b", "\u00e9\n"]


def test_a_header_without_tensors_or_data(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(raw({}, b""))
    assert read_tensors(path) == {}
    path.write_bytes(raw(row((0, 0), (0, 4), (4, 4)), bytes(4)))
    assert [t.extent.nbytes for t in read_tensors(path).values()] == [0, 4, 0]


def test_a_length_that_begins_as_a_pickle_does_is_none(tmp_path: Path) -> None:
    text = json.dumps(ENTRIES).encode().ljust(0x0280)
    path = tmp_path / "t.safetensors"
    path.write_bytes(raw(text))
    assert path.read_bytes().startswith(b"\x80\x02")
    assert read_tensors(path).keys() == {"a", "b"}


def test_shards_by_directory_and_by_index(tmp_path: Path) -> None:
    files = halves()
    index = write_shards(tmp_path, files)
    wanted = {name: array for held in files.values() for name, array in held.items()}
    check(read_tensors(tmp_path), wanted)
    check(read_tensors(index), wanted)
    (shard,) = list(files)[:1]
    check(read_tensors(tmp_path / shard), files[shard])


def test_files_of_the_hubs_cache_are_links(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    files = halves()
    write_shards(blobs, files)
    for number, path in enumerate(sorted(blobs.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    found = read_tensors(snapshot)
    check(found, {name: array for held in files.values() for name, array in held.items()})
    assert all(tensor.extent.path.startswith(str(snapshot)) for tensor in found.values())


def test_tensors_that_the_index_does_not_name_count(tmp_path: Path) -> None:
    files = halves()
    index = write_shards(tmp_path, files)
    text = json.loads(index.read_text())
    dropped = next(iter(text["weight_map"]))
    del text["weight_map"][dropped]
    index.write_text(json.dumps(text))
    assert dropped in read_tensors(tmp_path)


def test_what_is_taken_of_a_directory(tmp_path: Path) -> None:
    wanted = arrays()
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ModelFormatError, match="pickle.*nothing is unpickled"):
        read_tensors(tmp_path)
    save_file(wanted, tmp_path / "weights.safetensors")
    check(read_tensors(tmp_path), wanted)
    save_file(arrays(np.int8), tmp_path / "other.safetensors")
    with pytest.raises(ModelNotFoundError, match=r"2 .safetensors files: other.*weights"):
        read_tensors(tmp_path)
    write_shards(tmp_path, halves())
    check(read_tensors(tmp_path), wanted | read_back(tmp_path))
    save_file({"x": np.zeros(3)}, tmp_path / "model.safetensors")
    assert read_tensors(tmp_path).keys() == {"x"}


def read_back(directory: Path) -> Arrays:
    """Return the arrays of the shards in a directory."""
    from safetensors.numpy import load_file

    found: dict[str, NDArray[np.generic]] = {}
    for path in directory.glob("model-*.safetensors"):
        found |= load_file(path)
    return found


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="holds 0 .safetensors files: none"):
        read_tensors(tmp_path)
    with pytest.raises(ModelNotFoundError, match="there is no model file"):
        read_tensors(tmp_path / "absent.safetensors")
    with pytest.raises(ModelNotFoundError, match="cannot be the name"):
        read_tensors("a\0b")
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ModelNotFoundError, match="is not a file"):
        read_tensors(tmp_path)
