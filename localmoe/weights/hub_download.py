"""Downloads a model's files into the hub's own cache: resumable, checked, whole or not there.

huggingface-hub has the cache, the addresses and the names of its errors; but a download that it
breaks off begins anew. So bytes are fetched here: into a file beside the place where the library
keeps them, hashed as they come, and moved to that place when the hash is right. The library then
finds its file and links it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from localmoe.errors import HubError
from localmoe.settings import Progress
from localmoe.weights.hub import Listing, hub_errors
from localmoe.weights.quantized_files import HubFile

STAGE, CHECKING = "downloading", "checking what is there"
PARTIAL = ".localmoe-partial"
_PIECE_NBYTES = 1 << 20
_ATTEMPTS = 5
_SPARE_BYTES = 256 << 20
_TIMEOUT_SECONDS = 30.0


class Download:
    """The files of one model, some of which may be there."""

    def __init__(
        self, listing: Listing, progress: Progress | None = None, retry_seconds: float = 1.0
    ) -> None:
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        self._listing, self._progress, self._retry_seconds = listing, progress, retry_seconds
        folder = repo_folder_name(repo_id=listing.repository, repo_type="model")
        self.root = Path(constants.HF_HUB_CACHE)
        self._blobs = self.root / folder / "blobs"
        self._done = 0
        self._total = listing.chosen.nbytes

    def missing_nbytes(self) -> int:
        """Return how much is still to be fetched."""
        return sum(max(0, file.nbytes - self._held(file)) for file in self._listing.chosen.files)

    def run(self) -> Path:
        """Fetch what is missing; return the first file of the model.

        Raises HubError. What was fetched before an error, or Ctrl-C, is taken up again next time.
        """
        self._check_room()
        try:
            self._blobs.mkdir(parents=True, exist_ok=True)
            with self._alone():
                return [self._file(file) for file in self._listing.chosen.files][0]
        except OSError as error:
            raise HubError(_cannot_write(self._blobs, error)) from error

    def _check_room(self) -> None:
        place = self.root
        while not place.exists() and place != place.parent:
            place = place.parent
        missing, free = self.missing_nbytes(), shutil.disk_usage(place).free
        if missing and missing + _SPARE_BYTES > free:
            raise HubError(
                f"{self._listing.repository}:{self._listing.chosen.name} needs "
                f"{missing / 1e9:.2f} GB more, and {place} has {free / 1e9:.2f} GB free: make "
                "room, or set HF_HOME to a folder on another drive"
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let nobody else fetch the same at the same time."""
        from filelock import FileLock, Timeout

        lock = FileLock(self._blobs / f"{_digest(self._listing.chosen.files[0])}{PARTIAL}.lock")
        try:
            with lock.acquire(timeout=0):
                yield
        except Timeout as error:
            raise HubError(
                f"{self._listing.repository} is being pulled by another process: wait for it"
            ) from error
        Path(lock.lock_file).unlink(missing_ok=True)

    def _held(self, file: HubFile) -> int:
        blob = self._blobs / _digest(file)
        for path in (blob, blob.with_name(blob.name + PARTIAL)):
            if path.exists():
                return path.stat().st_size
        return 0

    def _file(self, file: HubFile) -> Path:
        from huggingface_hub import hf_hub_download

        listing = self._listing
        blob = self._blobs / _digest(file)
        if blob.exists() and blob.stat().st_size == file.nbytes:
            self._advance(file.nbytes, STAGE)
        else:
            blob.unlink(missing_ok=True)
            self._fetch(file, blob)
        with hub_errors(listing.repository):
            found = hf_hub_download(listing.repository, file.path, revision=listing.commit)
        self._name_commit()
        return Path(found)

    def _name_commit(self) -> None:
        """Let the commit be found as `main` without the hub, as the library does for branches."""
        ref = self._blobs.parent / "refs" / "main"
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(self._listing.commit)

    def _fetch(self, file: HubFile, blob: Path) -> None:
        partial = blob.with_name(blob.name + PARTIAL)
        hashed = _hash_for(file)
        with partial.open("a+b") as target:
            self._take_up(target, file, hashed)
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    with hub_errors(f"{self._listing.repository}/{file.path}"):
                        self._transfer(file, target, hashed)
                    break
                except HubError:
                    if attempt == _ATTEMPTS:
                        raise
                    time.sleep(self._retry_seconds * attempt)
            target.flush()
            os.fsync(target.fileno())
        if hashed.hexdigest() != _digest(file):
            partial.unlink()
            raise HubError(
                f"{file.path} arrived with other content than the hub says it has: it was removed. "
                "Pull again"
            )
        os.replace(partial, blob)

    def _take_up(self, target: BinaryIO, file: HubFile, hashed: Any) -> None:
        """Hash what an earlier attempt has fetched."""
        target.seek(0)
        while piece := target.read(_PIECE_NBYTES):
            hashed.update(piece)
            self._advance(len(piece), CHECKING)
        if target.tell() > file.nbytes:
            raise HubError(
                f"what was fetched of {file.path} is longer than the file: remove "
                f"{target.name} and pull again"
            )

    def _transfer(self, file: HubFile, target: BinaryIO, hashed: Any) -> None:
        """Fetch the rest of a file. Raises what the connection raises; then it can go on."""
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        at = target.seek(0, os.SEEK_END)
        if at == file.nbytes:
            return
        url = hf_hub_url(self._listing.repository, file.path, revision=self._listing.commit)
        headers = {
            **build_hf_headers(),
            "Range": f"bytes={at}-{file.nbytes - 1}",
            "Accept-Encoding": "identity",
        }
        with get_session().stream(
            "GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT_SECONDS
        ) as response:
            hf_raise_for_status(response)
            if at and response.status_code != 206:
                raise HubError(
                    f"the hub cannot go on in the middle of {file.path} (status "
                    f"{response.status_code}): remove {target.name} and pull again"
                )
            for piece in response.iter_bytes():
                at += len(piece)
                if at > file.nbytes:
                    raise HubError(f"{file.path} is longer than the {file.nbytes} bytes listed")
                target.write(piece)
                hashed.update(piece)
                self._advance(len(piece), STAGE)
        if at < file.nbytes:
            raise HubError(
                f"the connection ended {file.nbytes - at} bytes before the end of {file.path}: "
                "pull again to go on"
            )

    def _advance(self, nbytes: int, stage: str) -> None:
        self._done += nbytes
        if self._progress:
            self._progress(stage, self._done, self._total)


def _digest(file: HubFile) -> str:
    return file.digest.partition(":")[2]


def _hash_for(file: HubFile) -> Any:
    """Return the hash that the hub tells: SHA-256, or git's for what is stored in git itself."""
    if file.digest.startswith("sha256:"):
        return hashlib.sha256()
    hashed = hashlib.sha1(usedforsecurity=False)
    hashed.update(f"blob {file.nbytes}\0".encode())
    return hashed


def _cannot_write(folder: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk of {folder} is full: make room, or set HF_HOME to a folder on another "
            "drive, then pull again; what has arrived is kept"
        )
    return f"cannot write into {folder}: {error.strerror or error}"
