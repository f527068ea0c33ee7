"""Models that were pulled: what lies in the hub's cache, and what of it can go."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localmoe.errors import HubError, ModelNotFoundError
from localmoe.weights.hub_download import PARTIAL
from localmoe.weights.hub_names import HubName
from localmoe.weights.quantized_files import HubFile, Quantized, choose, quantizations


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


def pulled_models() -> list[PulledModel]:
    """Return all models in the cache, in the order of their names."""
    whole = (model for repository in _repositories() for model in _models(repository))
    return sorted((*whole, *_partial_models()), key=lambda model: model.name.lower())


def find_pulled(name: HubName) -> Path:
    """Return the first file of a pulled model; its other shards lie beside it.

    Raises ModelNotFoundError where it is not there, HubError where the quantization is not clear.
    """
    for repository in _repositories():
        if repository.repo_id.lower() == name.repository.lower():
            revision = _newest(repository)
            found = quantizations(_files(revision)) if revision else {}
            if found and (name.quantization is None or _has(found, name.quantization)):
                chosen = choose(name.repository, found, name.quantization)
                return Path(revision.snapshot_path) / chosen.files[0].path
    raise ModelNotFoundError(f"{name} is not on this machine. Get it with: localmoe pull {name}")


def remove_pulled(name: HubName) -> int:
    """Remove a pulled model, or what there is of it; return the bytes that were freed.

    What another revision or quantization uses stays. Raises ModelNotFoundError, HubError, OSError.
    """
    freed = _remove_partial(name)
    repository = next(
        (r for r in _repositories() if r.repo_id.lower() == name.repository.lower()), None
    )
    if repository is not None:
        freed += _remove_files(repository, name, missing_ok=freed > 0)
        if not any(Path(repository.repo_path, "blobs").glob("*")):
            shutil.rmtree(repository.repo_path)
    elif not freed:
        raise ModelNotFoundError(f"{name} is not on this machine: localmoe list shows what is")
    return freed


def _remove_partial(name: HubName) -> int:
    """Remove what was broken off of a repository; return the bytes that were freed."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=name.repository, repo_type="model")
    blobs = Path(constants.HF_HUB_CACHE) / folder / "blobs"
    freed = sum(_unlink(path) for path in blobs.glob(f"*{PARTIAL}*"))
    if blobs.is_dir() and not any(blobs.iterdir()):
        shutil.rmtree(blobs.parent)
    return freed


def _remove_files(repository: Any, name: HubName, *, missing_ok: bool) -> int:
    """Remove the quantization from every revision, then the blobs that nothing names any more."""
    gone: set[Path] = set()
    for revision in repository.revisions:
        found = quantizations(_files(revision))
        if name.quantization and not _has(found, name.quantization):
            continue
        wanted = [choose(name.repository, found, name.quantization)] if name.quantization else []
        paths = {file.path for model in wanted or found.values() for file in model.files}
        for file in revision.files:
            if _path_in(revision, file) in paths:
                gone.add(Path(file.blob_path))
                Path(file.file_path).unlink()
    used = {
        Path(file.blob_path)
        for revision in repository.revisions
        for file in revision.files
        if Path(file.file_path).exists()
    }
    if not gone and not missing_ok:
        raise ModelNotFoundError(f"{name} is not on this machine: localmoe list shows what is")
    return sum(_unlink(blob) for blob in gone - used)


def _unlink(path: Path) -> int:
    nbytes = path.stat().st_size if path.exists() else 0
    path.unlink(missing_ok=True)
    return nbytes


def _models(repository: Any) -> Iterator[PulledModel]:
    revision = _newest(repository)
    if revision is not None:
        for name, model in quantizations(_files(revision)).items():
            path = Path(revision.snapshot_path) / model.files[0].path
            yield PulledModel(
                f"{repository.repo_id}:{name}", path, model.nbytes, _last_used(revision, model)
            )


def _partial_models() -> Iterator[PulledModel]:
    """Yield what was broken off: the library knows nothing of it."""
    from huggingface_hub import constants

    for folder in Path(constants.HF_HUB_CACHE).glob("models--*--*"):
        partial = list((folder / "blobs").glob(f"*{PARTIAL}"))
        if partial:
            nbytes = sum(path.stat().st_size for path in partial)
            last = max(path.stat().st_mtime for path in partial)
            name = "/".join(folder.name.removeprefix("models--").split("--", 1))
            yield PulledModel(name, None, nbytes, last)


def _last_used(revision: Any, model: Quantized) -> float:
    names = {file.path for file in model.files}
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


def _newest(repository: Any) -> Any:
    """Return the revision that `main` was last; else the one that changed last; None: none."""
    revisions = sorted(repository.revisions, key=lambda r: ("main" in r.refs, r.last_modified))
    return revisions[-1] if revisions else None


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
