"""Which files of a repository are a safetensors checkpoint, and which go with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from localmoe.errors import HubError
from localmoe.weights.quantized_files import SAFETENSORS, HubFile, Quantized
from localmoe.weights.safetensors_header import SUFFIX
from localmoe.weights.safetensors_index import INDEX_SUFFIX

CONFIG = "config.json"
SMALL = (
    CONFIG,
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.json",
)
"""Beside templates: what says how a model is to be used. Kilobytes."""
_TOKENIZER = (
    *("tokenizer.json", "tokenizer.model", "tiktoken.model", "tekken.json"),
    *("vocab.json", "merges.txt", "added_tokens.json"),
)
_TEMPLATE, _TEMPLATE_FOLDERS = ".jinja", ("", "additional_chat_templates")
_ONLY, _INDEX = f"model{SUFFIX}", f"model{INDEX_SUFFIX}"
_WHOLE_MODEL_AGAIN = "consolidated"
"""How Mistral's files begin that hold the same weights under other names."""


def is_small(file: HubFile) -> bool:
    """Whether a file is one of those that say how a model is to be used."""
    return file.path in SMALL or _is_template(file)


def is_index(file: HubFile) -> bool:
    """Whether a file says which other ones have the weights."""
    return file.path.endswith(INDEX_SUFFIX)


def checkpoint(files: Sequence[HubFile]) -> Quantized | None:
    """Return the checkpoint among a repository's files, by their names; None: there is none.

    Its first file is the index, or the only weights. Those that an index names are to be found
    with `indexed`: until then every file of weights counts. Nothing in a folder counts, as the
    same weights often lie there once more.
    """
    top = {file.path: file for file in files if "/" not in file.path}
    weights = [
        file
        for path, file in top.items()
        if path.endswith(SUFFIX) and not path.startswith(_WHOLE_MODEL_AGAIN)
    ]
    first = top.get(_ONLY) or top.get(_INDEX) or (weights[0] if len(weights) == 1 else None)
    if first is None or CONFIG not in top:
        return None
    beside = [file for file in files if is_small(file) or file.path in _TOKENIZER]
    shards = weights if is_index(first) else []
    return Quantized(SAFETENSORS, (first, *beside, *shards))


def indexed(
    repository: str, found: Quantized, files: Iterable[HubFile], names: Sequence[str]
) -> Quantized:
    """Return a checkpoint with the files of weights that its index names, and no others.

    Raises HubError where the repository lacks one.
    """
    there = {file.path: file for file in files}
    missing = [name for name in names if name not in there]
    if missing:
        raise HubError(
            f"{repository} lacks {len(missing)} of the {len(names)} files that "
            f"{found.files[0].path} names, such as {missing[0]}: it is not whole. Ask whoever made "
            "it, or take another repository"
        )
    beside = [file for file in found.files if not file.path.endswith(SUFFIX)]
    return Quantized(found.name, (*beside, *(there[name] for name in sorted(names))))


def _is_template(file: HubFile) -> bool:
    folder, _, name = file.path.rpartition("/")
    return name.endswith(_TEMPLATE) and folder in _TEMPLATE_FOLDERS
