"""Finds the files of one GGUF model: a single file, all shards of a split one, or a directory's."""

from __future__ import annotations

import os
import re
from pathlib import Path

from localmoe.errors import ModelFormatError, ModelNotFoundError
from localmoe.weights.gguf_header import GgufHeader, read_header

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
MAX_SHARDS = 1024


def read_shards(path: str | Path) -> tuple[GgufHeader, ...]:
    """Read the headers of all files of a model, in order, and check that they belong together.

    `path` is a file, any one shard, or a directory that holds one model. Raises
    ModelNotFoundError, ModelFormatError, UnsupportedModelError.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        path = _only_model(path)
    given = read_header(path)
    count = _shard_count(given)
    if count == 1:
        return (given,)
    paths = _shard_paths(given, count)
    headers = tuple(given if shard == path else read_header(shard) for shard in paths)
    _check_shards(headers)
    return headers


def _only_model(directory: str) -> str:
    """Return the first file of the only model in a directory; vision projectors do not count."""
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".gguf"))
    except OSError as error:
        raise ModelNotFoundError(f"cannot list {directory}: {error}.") from error
    models: dict[str, str] = {}
    for name in names:
        if "mmproj" not in name.lower():
            match = _SHARD.fullmatch(name)
            models.setdefault(match["stem"] if match else name, name)
    if len(models) != 1:
        found = ", ".join(list(models.values())[:8]) or "none"
        raise ModelNotFoundError(
            f"{directory} should hold the .gguf files of one model, but holds {len(models)} "
            f"models: {found}. Give the path of one file."
        )
    return os.path.join(directory, *models.values())


def _shard_count(header: GgufHeader) -> int:
    count = header.metadata.get("split.count", 1)
    if header.kinds.get("split.count", "u16") != "u16" or not isinstance(count, int):
        raise ModelFormatError(
            f"{header.path}: split.count must be a u16, not {header.kinds['split.count']}."
        )
    if count > MAX_SHARDS:
        raise ModelFormatError(
            f"{header.path} claims to be one of {count} shards; at most {MAX_SHARDS} are allowed."
        )
    return max(count, 1)


def _shard_paths(given: GgufHeader, count: int) -> tuple[str, ...]:
    folder, name = os.path.split(given.path)
    match = _SHARD.fullmatch(name)
    if match is None or int(match["count"]) != count:
        raise ModelFormatError(
            f"{given.path} is one of {count} shards, so its name must end in "
            f"-00001-of-{count:05}.gguf or the like. Give it back its original name."
        )
    stem = os.path.join(folder, match["stem"])
    paths = tuple(f"{stem}-{n:05}-of-{count:05}.gguf" for n in range(1, count + 1))
    missing = [os.path.basename(path) for path in paths if not os.path.exists(path)]
    if missing:
        raise ModelNotFoundError(
            f"{len(missing)} of {count} shards are missing beside {given.path}: "
            f"{', '.join(missing[:8])}. Download them into the same directory."
        )
    return paths


def _check_shards(headers: tuple[GgufHeader, ...]) -> None:
    """Refuse shards of different models, in the wrong order, or with tensors in common."""
    first, seen = headers[0], dict[str, str]()
    for number, header in enumerate(headers):
        _expect(header, "split.no", "u16", number)
        _expect(header, "split.count", "u16", len(headers))
        architecture = header.metadata.get("general.architecture")
        if number and architecture not in (None, first.metadata.get("general.architecture")):
            raise ModelFormatError(
                f"{header.path} is of architecture {architecture!r}, unlike {first.path}. "
                "The shards belong to different models: download them again."
            )
        for tensor in header.tensors:
            if tensor.name in seen:
                raise ModelFormatError(
                    f"the tensor {tensor.name!r} is in both {seen[tensor.name]} and {header.path}."
                )
            seen[tensor.name] = header.path
    for header in headers:
        if header is first or "split.tensors.count" in header.metadata:
            _expect(header, "split.tensors.count", "i32", len(seen))


def _expect(header: GgufHeader, key: str, kind: str, wanted: int) -> None:
    found = header.metadata.get(key)
    if found != wanted or header.kinds[key] != kind:
        raise ModelFormatError(
            f"{header.path}: {key} should be {wanted} ({kind}), but is {found} "
            f"({header.kinds.get(key, 'missing')}). The shards do not belong together, or one "
            "was renamed: download them again."
        )
