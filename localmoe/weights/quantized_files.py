"""Which files of a repository are a model in which quantization, by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import PurePosixPath

from localmoe.errors import HubError
from localmoe.weights.shards import MAX_SHARDS

USUAL = "Q4_K_M"
SAFETENSORS = "safetensors"
"""What a checkpoint in safetensors files is called, which has no quantization in its name."""
_QUANTIZATION = re.compile(
    r"(?<![A-Za-z0-9])((?:UD-)?(?:I?Q\d\d?(?:_[A-Za-z0-9]+)*|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|BF16|F16|F32))"
    r"(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
_ASIDE = ("mmproj", "imatrix")
"""In names of files that are no model."""
_LISTED = 24
_MAX_FILES = 10_000
_MAX_NBYTES = 1 << 50


@dataclass(frozen=True)
class HubFile:
    """A file in a repository. `digest` is "sha256:..." or git's own "blob:...", in hexadecimal."""

    path: str
    nbytes: int
    digest: str


@dataclass(frozen=True)
class Quantized:
    """The files of one model in one quantization, in the order of its shards."""

    name: str
    files: tuple[HubFile, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.nbytes for file in self.files)


def check_files(repository: str, files: Sequence[HubFile]) -> None:
    """Refuse a listing that no honest repository has. Raises HubError."""
    if len(files) > _MAX_FILES:
        raise HubError(f"{repository} lists {len(files)} files; at most {_MAX_FILES} are believed")
    for file in files:
        parts = PurePosixPath(file.path).parts
        if (
            not parts
            or file.path.startswith("/")
            or ".." in parts
            or "\\" in file.path
            or not file.path.isprintable()
            or len(file.path) > 1024
        ):
            raise HubError(f"{repository} lists a file with the name {file.path!r}: not touched")
        if not 0 <= file.nbytes <= _MAX_NBYTES:
            raise HubError(f"{repository} lists {file.path} with {file.nbytes} bytes: not believed")


def quantizations(files: Iterable[HubFile]) -> dict[str, Quantized]:
    """Return the models that these files are, by name; what lacks a shard is left out."""
    groups: dict[str, dict[int, HubFile]] = {}
    counts: dict[str, int] = {}
    for file in files:
        path = PurePosixPath(file.path)
        if path.suffix.lower() != ".gguf" or any(word in path.name.lower() for word in _ASIDE):
            continue
        match = _SHARD.fullmatch(path.stem)
        stem = str(path.parent / (match["stem"] if match else path.stem))
        number, count = (int(match["number"]), int(match["count"])) if match else (1, 1)
        if not 1 <= number <= count <= MAX_SHARDS or counts.setdefault(stem, count) != count:
            continue
        groups.setdefault(stem, {})[number] = file
    whole = {
        stem: tuple(found[number] for number in sorted(found))
        for stem, found in groups.items()
        if len(found) == counts[stem]
    }
    return _named(whole)


def _named(groups: Mapping[str, tuple[HubFile, ...]]) -> dict[str, Quantized]:
    """Name each group by its quantization, or by its file where that says too little."""
    labels = {stem: quantization_of(stem) for stem in groups}
    named = {}
    for stem, files in groups.items():
        label = labels[stem]
        if label is None or list(labels.values()).count(label) > 1:
            label = PurePosixPath(stem).name
        if label in named:
            label = stem.replace("/", "-")
        named[label] = Quantized(label, files)
    return named


def quantization_of(stem: str) -> str | None:
    """Return the quantization that a path without its ending names, in capitals."""
    path = PurePosixPath(stem)
    for part in (path.name, *reversed(path.parent.parts)):
        found = _QUANTIZATION.findall(part)
        if found:
            return str(found[-1]).upper()
    return None


def choose(repository: str, found: Mapping[str, Quantized], wanted: str | None) -> Quantized:
    """Return the model in the wanted quantization, or in the usual one. Raises HubError.

    Where a repository has both, GGUF files come before safetensors.
    """
    if not found:
        raise HubError(
            f"{repository} has neither GGUF files nor a checkpoint of config.json and *.safetensors"
            ", and localmoe runs nothing else. Repositories with GGUF in their name often have the "
            "same model"
        )
    listed = ", ".join(f"{q.name} ({q.nbytes / 1e9:.1f} GB)" for q in _shown(found))
    if wanted is None:
        if USUAL in found:
            return found[USUAL]
        usual = [name for name in found if name != SAFETENSORS] or [SAFETENSORS]
        if len(usual) == 1:
            return found[usual[0]]
        raise HubError(
            f"{repository} has several quantizations: name one, as in "
            f"{repository}:{usual[0]}. There are {listed}"
        )
    names = {name.upper(): name for name in found}
    name = names.get(wanted.upper()) or names.get(f"UD-{wanted.upper()}")
    if name is None:
        near = get_close_matches(wanted.upper(), names, n=2, cutoff=0.5)
        hint = f"Did you mean {' or '.join(names[n] for n in near)}? " if near else ""
        raise HubError(f"{repository} has no quantization {wanted}. {hint}There are {listed}")
    return found[name]


def _shown(found: Mapping[str, Quantized]) -> list[Quantized]:
    return sorted(found.values(), key=lambda q: q.nbytes)[:_LISTED]
