"""The tensors of a safetensors checkpoint, from the headers of its files and its index."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from localmoe.errors import ModelFormatError, ModelNotFoundError
from localmoe.weights.safetensors_header import (
    MAX_TENSORS,
    PICKLES,
    SUFFIX,
    StoredTensor,
    pickle_error,
    read_file_tensors,
)
from localmoe.weights.safetensors_index import INDEX_SUFFIX, read_index

__all__ = ["StoredTensor", "read_tensors"]

_ONLY, _INDEX = f"model{SUFFIX}", f"model{INDEX_SUFFIX}"


def read_tensors(path: str | Path) -> dict[str, StoredTensor]:
    """Return all tensors of a checkpoint by name.

    `path` is a directory, an index, or the only file. In a directory `model.safetensors` comes
    before `model.safetensors.index.json`, as for transformers, then any file that is the only
    one. Raises ModelNotFoundError, ModelFormatError. Reads headers and the index alone; nothing is
    allocated because they say so.
    """
    name = os.fspath(path)
    if "\0" in name:
        raise ModelNotFoundError(f"{name!r} cannot be the name of a model.")
    if os.path.isdir(name):
        name = _model_in(name)
    if name.endswith(INDEX_SUFFIX):
        return _indexed(name)
    return {tensor.name: tensor for tensor in read_file_tensors(name)}


def _model_in(directory: str) -> str:
    """Return the index or the only file of a directory."""
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise ModelNotFoundError(f"cannot list {directory}: {error}.") from error
    for wanted in (_ONLY, _INDEX):
        if wanted in names:
            return os.path.join(directory, wanted)
    files = [name for name in names if name.endswith(SUFFIX)]
    if len(files) == 1:
        return os.path.join(directory, files[0])
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles and not files:
        raise pickle_error(os.path.join(directory, pickles[0]))
    found = ", ".join(files[:8]) or "none"
    raise ModelNotFoundError(
        f"{directory} should hold {_ONLY}, {_INDEX} with its files, or one {SUFFIX} file, but "
        f"holds {len(files)} {SUFFIX} files: {found}. Pull the model again, or give the path of "
        "one file."
    )


def _indexed(path: str) -> dict[str, StoredTensor]:
    """Read all files that an index names.

    A file may have tensors that the index does not name: engines load whole files, and models
    that were merged or trained further are published so. They count like the others.
    """
    folder, tensors = os.path.dirname(path), dict[str, StoredTensor]()
    for file, promised in read_index(path).items():
        shard = os.path.join(folder, file)
        held = {tensor.name: tensor for tensor in read_file_tensors(shard)}
        lacking = [name for name in promised if name not in held]
        if lacking:
            raise ModelFormatError(
                f"{shard} should have {_few(lacking)} as {path} says, but lacks them. The files do "
                "not belong together, or one is old: pull the model again."
            )
        twice = [name for name in held if name in tensors]
        if twice:
            raise ModelFormatError(
                f"{shard} has {_few(twice)} that another file of the model has as well. The files "
                "do not belong together: pull the model again."
            )
        tensors |= held
        if len(tensors) > MAX_TENSORS:
            raise ModelFormatError(
                f"the files of {path} have more than {MAX_TENSORS} tensors, and no model has. "
                "They are damaged: pull the model again."
            )
    return tensors


def _few(names: Sequence[str]) -> str:
    """Return how many tensors these are, and the first of them."""
    more = ", ..." if len(names) > 5 else ""
    return f"{len(names)} tensors ({', '.join(map(repr, names[:5]))}{more})"
