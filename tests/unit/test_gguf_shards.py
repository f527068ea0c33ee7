"""A split model is found from any of its files, and shards that do not belong together are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from localmoe.errors import ModelFormatError, ModelNotFoundError
from localmoe.weights.gguf import read_catalog
from localmoe.weights.shards import read_shards
from raw_gguf import RawGguf, tiny


def split(count: int = 3) -> list[RawGguf]:
    """Return the shards of the tiny model; the first has no tensors, as some splitters do."""
    whole = tiny()
    shards = [RawGguf(keys=list(whole.keys))]
    size = -(-len(whole.tensors) // (count - 1))
    for start in range(0, len(whole.tensors), size):
        shards.append(RawGguf(tensors=whole.tensors[start : start + size]))
    return [
        shard.with_key("split.no", "u16", number)
        .with_key("split.count", "u16", count)
        .with_key("split.tensors.count", "i32", len(whole.tensors))
        for number, shard in enumerate(shards)
    ]


def write(folder: Path, shards: list[RawGguf], stem: str = "model") -> list[Path]:
    count = len(shards)
    return [
        shard.write(folder / f"{stem}-{number:05}-of-{count:05}.gguf")
        for number, shard in enumerate(shards, 1)
    ]


def test_any_shard_and_the_directory_give_the_same_catalog(tmp_path: Path) -> None:
    paths = write(tmp_path, split())
    catalogs = [read_catalog(path) for path in (*paths, tmp_path)]
    assert all(catalog == catalogs[0] for catalog in catalogs)
    assert catalogs[0].paths == tuple(str(path) for path in paths)
    assert len(catalogs[0].layers) == 2
    assert catalogs[0].expert_nbytes == read_catalog(tiny().write(tmp_path / "w")).expert_nbytes


def test_parts_name_the_shard_that_holds_them(tmp_path: Path) -> None:
    paths = [str(path) for path in write(tmp_path, split())]
    holders = {p.extent.path for layer in read_catalog(tmp_path).layers for p in layer.parts}
    assert holders == set(paths[1:])


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    paths = write(tmp_path, split())
    paths[1].unlink()
    with pytest.raises(ModelNotFoundError, match="model-00002-of-00003.gguf"):
        read_catalog(paths[0])


@pytest.mark.parametrize(
    ("key", "kind", "value", "message"),
    [
        ("split.no", "u16", 2, "split.no"),
        ("split.no", "u32", 1, "split.no"),
        ("split.count", "u16", 4, "split.count"),
        ("split.tensors.count", "i32", 99, "split.tensors.count"),
        ("general.architecture", "str", "llama", "different models"),
    ],
)
def test_shards_that_disagree(
    tmp_path: Path, key: str, kind: str, value: object, message: str
) -> None:
    shards = split()
    shards[1] = shards[1].with_key(key, kind, value)
    with pytest.raises(ModelFormatError, match=message):
        read_catalog(write(tmp_path, shards)[0])


def test_a_shard_without_its_number(tmp_path: Path) -> None:
    shards = split()
    shards[2] = shards[2].without_key("split.no")
    with pytest.raises(ModelFormatError, match="split.no should be 2"):
        read_catalog(write(tmp_path, shards)[0])


def test_one_tensor_in_two_shards(tmp_path: Path) -> None:
    shards = split()
    shards[2].tensors[0].name = shards[1].tensors[0].name
    with pytest.raises(ModelFormatError, match="in both"):
        read_catalog(write(tmp_path, shards)[0])


def test_a_renamed_shard(tmp_path: Path) -> None:
    path = write(tmp_path, split())[0]
    with pytest.raises(ModelFormatError, match="original name"):
        read_catalog(path.rename(tmp_path / "renamed.gguf"))


def test_an_absurd_number_of_shards(tmp_path: Path) -> None:
    path = tiny().with_key("split.count", "u16", 65535).write(tmp_path / "m.gguf")
    with pytest.raises(ModelFormatError, match="65535 shards"):
        read_catalog(path)


def test_a_directory_must_hold_one_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="0 models"):
        read_shards(tmp_path)
    first = tiny().write(tmp_path / "a.gguf")
    tiny().write(tmp_path / "mmproj-a.gguf")
    assert read_shards(tmp_path)[0].path == str(first)
    tiny().write(tmp_path / "b.gguf")
    with pytest.raises(ModelNotFoundError, match=r"2 models: a\.gguf, b\.gguf"):
        read_shards(tmp_path)
