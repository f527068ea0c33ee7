"""The index of a checkpoint in several safetensors files: which file has which tensor."""

from __future__ import annotations

import os
from collections.abc import Iterator

from localmoe.errors import ModelFormatError, ModelNotFoundError
from localmoe.weights.byte_cursor import ByteCursor
from localmoe.weights.json_cursor import JsonCursor
from localmoe.weights.model_file import open_model_file
from localmoe.weights.safetensors_header import (
    MAX_NAME_NBYTES,
    MAX_TENSORS,
    PICKLES,
    SUFFIX,
    pickle_error,
)

INDEX_SUFFIX = ".safetensors.index.json"
MAX_INDEX_NBYTES = 100_000_000
"""As for a header: the largest published ones have about 20 MB."""
MAX_SHARDS = 4096
_MAX_FILE_NAME_NBYTES = 255
_MAX_MEMBER_NBYTES = 1 << 16
_MAX_MEMBERS = 64


def read_index(path: str) -> dict[str, list[str]]:
    """Return the names of tensors by file, {file name: names}, in the order of the index.

    A name of a file stands for one beside the index. That one may be a link to anywhere, as in
    the hub's cache: the index cannot make links, and who can make them beside it could put any
    file there. Raises ModelNotFoundError, ModelFormatError.
    """
    found = _read(path)
    _check_files(path, list(found))
    return found


def named_files(path: str) -> list[str]:
    """Return the files that an index names, whether they are there or not.

    Raises ModelNotFoundError, ModelFormatError.
    """
    return list(_read(path))


def _read(path: str) -> dict[str, list[str]]:
    with open_model_file(path, INDEX_SUFFIX) as (file, nbytes):
        check_index_nbytes(path, nbytes)
        data = ByteCursor(file, path, nbytes).take(nbytes, "the index")
    return parse_index(data, path)


def check_index_nbytes(path: str, nbytes: int) -> None:
    """Refuse an index that is longer than any is. Raises ModelFormatError."""
    if nbytes > MAX_INDEX_NBYTES:
        raise ModelFormatError(
            f"{path} has {nbytes} bytes, and no index has over {MAX_INDEX_NBYTES}. Pull it again."
        )


def parse_index(data: bytes, path: str) -> dict[str, list[str]]:
    """Return the names of tensors by file; `path` names the index in messages.

    Raises ModelFormatError.
    """
    found: dict[str, list[str]] | None = None
    cursor = JsonCursor(data, path)
    for key in cursor.members("the index", MAX_NAME_NBYTES, _MAX_MEMBERS):
        if key == "weight_map":
            found = {}
            for tensor, shard in _weight_map(cursor):
                found.setdefault(shard, []).append(tensor)
        else:
            cursor.value(f"{key!r} in the index", _MAX_MEMBER_NBYTES)
    cursor.end()
    if not found:
        raise ModelFormatError(
            f"{path} should name the files of tensors in weight_map, but names none. Pull it again."
        )
    return found


def _weight_map(cursor: JsonCursor) -> Iterator[tuple[str, str]]:
    """Yield tensor and file; one and the same string for each file."""
    files: dict[str, str] = {}
    for tensor in cursor.members("weight_map", MAX_NAME_NBYTES, MAX_TENSORS):
        what = f"the file of tensor {tensor!r}"
        name = cursor.string(what, _MAX_FILE_NAME_NBYTES)
        if name not in files:
            _check_file_name(cursor.path, name, what)
            if len(files) == MAX_SHARDS:
                raise ModelFormatError(
                    f"{cursor.path} names more than {MAX_SHARDS} files, and no model has. Pull it "
                    "again."
                )
            files[name] = name
        yield tensor, files[name]


def _check_file_name(path: str, name: str, what: str) -> None:
    """Refuse what would lead out of the directory, or to a pickle."""
    if name.endswith(PICKLES):
        raise pickle_error(f"{name!r}, which {path} names,")
    if any(c in name for c in "/\\:\0") or not name.endswith(SUFFIX) or name.startswith("."):
        raise ModelFormatError(
            f"{path} should have the plain name of a {SUFFIX} file beside it for {what}, but has "
            f"{name[:80]!r}. Take the model from somebody whom you trust."
        )


def _check_files(path: str, names: list[str]) -> None:
    """Say at once how many files are missing."""
    folder = os.path.dirname(path)
    missing = [name for name in names if not os.path.exists(os.path.join(folder, name))]
    if missing:
        raise ModelNotFoundError(
            f"{len(missing)} of {len(names)} files are missing beside {path}: "
            f"{', '.join(missing[:8])}. Pull the model again, into the same directory."
        )
