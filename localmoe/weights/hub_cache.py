"""Models that were pulled: what lies in the hub's cache, and what of it can go."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localmoe.errors import HubError, ModelError, ModelNotFoundError
from localmoe.weights.checkpoint_config import read_checkpoint_config
from localmoe.weights.checkpoint_files import checkpoint, indexed, is_index
from localmoe.weights.digests import digest_of
from localmoe.weights.hub_names import HubName
from localmoe.weights.pull_note import PARTIAL, PullNote, find_note, read_notes
from localmoe.weights.quantized_files import (
    SAFETENSORS,
    HubFile,
    Quantized,
    choose,
    quantizations,
)
from localmoe.weights.safetensors_index import named_files


@dataclass(frozen=True)
class PulledModel:
    """A model in the cache. Times in seconds since 1970."""

    name: str
    """OWNER/REPO:QUANT."""
    path: Path | None
    """Its first file; None where it is not complete."""
    nbytes: int
    """What it takes on the disk."""
    last_used: float

    @property
    def is_complete(self) -> bool:
        """Whether it can be run."""
        return self.path is not None


@dataclass(frozen=True)
class _Found:
    """A model in a revision of a repository."""

    revision: Any
    model: Quantized

    @property
    def path(self) -> Path:
        return Path(self.revision.snapshot_path) / self.model.files[0].path


def pulled_models() -> list[PulledModel]:
    """Return all models in the cache, in the order of their names. Raises HubError."""
    models = []
    for repository in _repositories():
        for name, found in _models(repository).items():
            full = f"{repository.repo_id}:{name}"
            if _is_meant_for_us(repository, found):
                models.append(PulledModel(full, found.path, found.model.nbytes, _last_used(found)))
    complete = {model.name for model in models}
    models += [model for model in _incomplete() if model.name not in complete]
    return sorted(models, key=lambda model: model.name.lower())


def find_pulled(name: HubName) -> Path:
    """Return the first file of a pulled model; its other shards lie beside it.

    Raises ModelNotFoundError where it is not there, HubError where the quantization is not clear.
    """
    for repository in _repositories():
        if repository.repo_id.lower() == name.repository.lower():
            found = _models(repository)
            models = {label: one.model for label, one in found.items()}
            if models and (name.quantization is None or _has(models, name.quantization)):
                return found[choose(name.repository, models, name.quantization).name].path
    raise ModelNotFoundError(f"{name} is not on this machine. Get it with: localmoe pull {name}")


def remove_pulled(name: HubName) -> int:
    """Remove a pulled model, or what there is of it; return the bytes that were freed.

    What another revision or quantization uses stays. Raises ModelNotFoundError, HubError, OSError.
    """
    folder = _folder(name)
    blobs = folder / "blobs"
    notes = [note for note in read_notes(folder) if _is_meant(note, name)]
    pointers, gone = _pointers(name, {file.path for note in notes for file in note.files})
    gone |= {blobs / digest_of(file) for note in notes for file in note.files}
    if not pointers and not notes:
        raise ModelNotFoundError(f"{name} is not on this machine: localmoe list shows what is")
    for pointer in pointers:
        pointer.unlink()
    used = {path.resolve() for path in (folder / "snapshots").rglob("*") if path.is_symlink()}
    freed = sum(_unlink(blob) for blob in gone if blob.resolve() not in used)
    for note in notes:
        for file in note.files:
            freed += _unlink(blobs / f"{digest_of(file)}{PARTIAL}")
        note.remove(folder)
    if not any(blobs.glob("*")) and not any((folder / "localmoe").glob("*")):
        shutil.rmtree(folder)
    return freed


def _pointers(name: HubName, also: set[str]) -> tuple[set[Path], set[Path]]:
    """Return the names of a model's files in all revisions, and their blobs."""
    pointers: set[Path] = set()
    blobs: set[Path] = set()
    for repository in _repositories():
        if repository.repo_id.lower() != name.repository.lower():
            continue
        for revision in repository.revisions:
            found = _models_of(repository, revision)
            wanted = [q for q in found.values() if _is_wanted(q.name, found, name)]
            paths = {file.path for model in wanted for file in model.files} | also
            for file in revision.files:
                if _path_in(revision, file) in paths:
                    pointers.add(Path(file.file_path))
                    blobs.add(Path(file.blob_path))
    return pointers, blobs


def _is_wanted(label: str, found: dict[str, Quantized], name: HubName) -> bool:
    if name.quantization is None:
        return True
    return _has(found, name.quantization) and choose("", found, name.quantization).name == label


def _is_meant(note: PullNote, name: HubName) -> bool:
    wanted = (name.quantization or note.quantization).upper()
    return note.quantization.upper() in (wanted, f"UD-{wanted}")


def _unlink(path: Path) -> int:
    nbytes = path.stat().st_size if path.exists() else 0
    path.unlink(missing_ok=True)
    return nbytes


def _models(repository: Any) -> dict[str, _Found]:
    """Return the whole models of a repository by quantization: of each the newest."""
    found: dict[str, _Found] = {}
    newest_first = sorted(
        repository.revisions, key=lambda r: ("main" in r.refs, r.last_modified), reverse=True
    )
    for revision in newest_first:
        for label, model in _models_of(repository, revision).items():
            found.setdefault(label, _Found(revision, model))
    return found


def _models_of(repository: Any, revision: Any) -> dict[str, Quantized]:
    """Return the whole models of a revision by quantization."""
    files = _files(revision)
    found = quantizations(files)
    whole = _checkpoint_of(repository, revision, files)
    if whole and not _lacks(repository, revision, files):
        found[whole.name] = whole
    return found


def _checkpoint_of(repository: Any, revision: Any, files: list[HubFile]) -> Quantized | None:
    whole = checkpoint(files)
    if whole is None or not is_index(whole.files[0]):
        return whole
    try:
        names = named_files(str(Path(revision.snapshot_path) / whole.files[0].path))
        return indexed(repository.repo_id, whole, files, names)
    except (ModelError, HubError):  # damaged, or its files are not all there: no model yet
        return None


def _is_meant_for_us(repository: Any, found: _Found) -> bool:
    """Whether a model is one to list: checkpoints of all kinds lie in this cache.

    Those that a pull has fetched are, and those with experts.
    """
    revision = found.revision
    if found.model.name != SAFETENSORS or _note(repository, revision):
        return True
    try:
        return bool(read_checkpoint_config(revision.snapshot_path).n_experts)
    except ModelError:  # not even its config.json can be read
        return False


def _note(repository: Any, revision: Any) -> PullNote | None:
    return find_note(Path(repository.repo_path), SAFETENSORS, revision.commit_hash)


def _lacks(repository: Any, revision: Any, files: list[HubFile]) -> bool:
    """Whether a pull of this revision's checkpoint wants files that are not there yet."""
    note = _note(repository, revision)
    there = {file.path for file in files}
    return note is not None and not {file.path for file in note.files} <= there


def _incomplete() -> Iterator[PulledModel]:
    """Yield what pulls have begun, by their notes."""
    from huggingface_hub import constants

    for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*")):
        for note in read_notes(folder):
            names = [digest_of(file) for file in note.files]
            held = [
                path
                for name in names
                for path in (folder / "blobs" / name, folder / "blobs" / f"{name}{PARTIAL}")
                if path.exists()
            ]
            last = max((path.stat().st_mtime for path in held), default=0.0)
            yield PulledModel(note.name, None, sum(path.stat().st_size for path in held), last)


def _last_used(found: _Found) -> float:
    names = {file.path for file in found.model.files}
    revision = found.revision
    return max(
        float(file.blob_last_accessed)
        for file in revision.files
        if _path_in(revision, file) in names
    )


def _repositories() -> list[Any]:
    """Return the model repositories of the cache; none where there is no cache yet."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return [repo for repo in scan_cache_dir().repos if repo.repo_type == "model"]
    except CacheNotFound:
        return []


def _folder(name: HubName) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=name.repository, repo_type="model")
    return Path(constants.HF_HUB_CACHE) / folder


def _files(revision: Any) -> list[HubFile]:
    return [HubFile(_path_in(revision, file), file.size_on_disk, "") for file in revision.files]


def _path_in(revision: Any, file: Any) -> str:
    return str(Path(file.file_path).relative_to(revision.snapshot_path))


def _has(found: dict[str, Quantized], quantization: str) -> bool:
    try:
        choose("", found, quantization)
    except HubError:
        return False
    return True
