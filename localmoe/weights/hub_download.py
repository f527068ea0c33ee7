"""Downloads a model's files into the hub's own cache: resumable, checked, whole or not there.

huggingface-hub has the cache, the addresses and the names of its errors; but a download that it
breaks off begins anew. So bytes are fetched here: into a file beside the place where the library
keeps them, hashed as they come, and moved to that place when the hash is right. The library then
finds its file and links it.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from localmoe.errors import HubError
from localmoe.settings import Progress
from localmoe.weights.digests import digest_of, hash_for
from localmoe.weights.hub import Listing, hub_errors, open_range
from localmoe.weights.pull_note import PARTIAL, PullNote, find_note
from localmoe.weights.quantized_files import HubFile

STAGE, CHECKING = "downloading", "checking what is there"
_PIECE_NBYTES = 1 << 20
_ATTEMPTS = 5
_SPARE_BYTES = 256 << 20


class Download:
    """The files of one model, some of which may be there."""

    def __init__(
        self, listing: Listing, progress: Progress | None = None, retry_seconds: float = 0.5
    ) -> None:
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        self._listing, self._progress, self._retry_seconds = listing, progress, retry_seconds
        folder = repo_folder_name(repo_id=listing.repository, repo_type="model")
        self.root = Path(constants.HF_HUB_CACHE)
        self._blobs = self.root / folder / "blobs"
        self._done = 0
        self._total = listing.chosen.nbytes
        chosen = listing.chosen
        self._note = find_note(self._blobs.parent, chosen.name, listing.commit) or PullNote(
            listing.repository, chosen.name, listing.commit, chosen.files
        )

    def missing_nbytes(self) -> int:
        """Return how much is still to be fetched."""
        return sum(max(0, file.nbytes - self._held(file)) for file in self._listing.chosen.files)

    def run(self, on_file: Callable[[HubFile], None] = lambda _: None) -> Path:
        """Fetch what is missing; return the first file of the model.

        `on_file` is told of each file before it is looked at. Raises HubError. What was fetched
        before an error, or Ctrl-C, is taken up again next time.
        """
        self._check_room()
        try:
            self._blobs.mkdir(parents=True, exist_ok=True)
            with self._alone():
                self._note.write(self._blobs.parent)
                paths = []
                for file in self._listing.chosen.files:
                    on_file(file)
                    paths.append(self._file(file))
                return paths[0]
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

        lock = FileLock(self._blobs / f"{digest_of(self._listing.chosen.files[0])}{PARTIAL}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise HubError(
                f"{self._listing.repository} is being pulled by another process: wait for it"
            ) from error
        try:
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()
            self._tidy()

    def _tidy(self) -> None:
        """Leave nothing behind of a pull of which nothing came."""
        if self.missing_nbytes() < self._total:
            return
        for file in self._listing.chosen.files:
            (self._blobs / f"{digest_of(file)}{PARTIAL}").unlink(missing_ok=True)
        self._note.remove(self._blobs.parent)
        if not any(self._blobs.iterdir()) and not (self._blobs.parent / "snapshots").exists():
            shutil.rmtree(self._blobs.parent)

    def _held(self, file: HubFile) -> int:
        blob = self._blobs / digest_of(file)
        for path in (blob, blob.with_name(blob.name + PARTIAL)):
            if path.exists():
                return path.stat().st_size
        return 0

    def _file(self, file: HubFile) -> Path:
        from huggingface_hub import hf_hub_download

        listing = self._listing
        blob = self._blobs / digest_of(file)
        if blob.exists() and not self._is_right(file, blob):
            blob.unlink()
        if not blob.exists():
            self._fetch(file, blob)
        self._note = self._note.with_compared(file)
        self._note.write(self._blobs.parent)
        with hub_errors(listing.repository):
            found = hf_hub_download(listing.repository, file.path, revision=listing.commit)
        self._name_commit()
        return Path(found)

    def _is_right(self, file: HubFile, blob: Path) -> bool:
        """Whether a file that is there has the right content: compared once."""
        if blob.stat().st_size != file.nbytes:
            return False
        if file.digest in self._note.compared:
            self._advance(file.nbytes, STAGE)
            return True
        hashed = hash_for(file)
        with blob.open("rb") as source:
            self._add(source, hashed)
        return bool(hashed.hexdigest() == digest_of(file))

    def _add(self, source: BinaryIO, hashed: Any) -> None:
        while piece := source.read(_PIECE_NBYTES):
            hashed.update(piece)
            self._advance(len(piece), CHECKING)

    def _name_commit(self) -> None:
        """Let the commit be found as `main` without the hub, as the library does for branches."""
        ref = self._blobs.parent / "refs" / "main"
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(self._listing.commit)

    def _fetch(self, file: HubFile, blob: Path) -> None:
        partial = blob.with_name(blob.name + PARTIAL)
        hashed = hash_for(file)
        with partial.open("a+b") as target:
            self._take_up(target, file, hashed)
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    for piece in self._pieces(file, target.seek(0, os.SEEK_END)):
                        target.write(piece)
                        hashed.update(piece)
                        self._advance(len(piece), STAGE)
                    break
                except HubError as error:
                    if attempt == _ATTEMPTS or not error.passes:
                        raise
                    time.sleep(self._retry_seconds * attempt)
            target.flush()
            os.fsync(target.fileno())
        if hashed.hexdigest() != digest_of(file):
            partial.unlink()
            raise HubError(
                f"{file.path} arrived with other content than the hub says it has: it was removed. "
                "Pull again"
            )
        os.replace(partial, blob)

    def _take_up(self, target: BinaryIO, file: HubFile, hashed: Any) -> None:
        """Hash what an earlier attempt has fetched."""
        target.seek(0)
        self._add(target, hashed)
        if target.tell() > file.nbytes:
            raise HubError(
                f"what was fetched of {file.path} is longer than the file: remove "
                f"{target.name} and pull again"
            )

    def _pieces(self, file: HubFile, at: int) -> Iterator[bytes]:
        """Yield the rest of a file from a place on. Raises HubError."""
        if at == file.nbytes:
            return
        with open_range(self._listing, file.path, at, file.nbytes - at) as response:
            skip = _to_skip(response, file, at)
            for piece in response.iter_bytes():
                fresh = piece[skip:]
                skip -= len(piece) - len(fresh)
                at += len(fresh)
                if at > file.nbytes:
                    raise HubError(f"{file.path} is longer than the {file.nbytes} bytes listed")
                yield fresh
        if at < file.nbytes:
            raise HubError(
                f"the connection ended {file.nbytes - at} bytes before the end of {file.path}: "
                "pull again to go on",
                passes=True,
            )

    def _advance(self, nbytes: int, stage: str) -> None:
        self._done += nbytes
        if self._progress:
            self._progress(stage, self._done, self._total)


def _to_skip(response: Any, file: HubFile, at: int) -> int:
    """Return how much of an answer is there already: nothing, or all before the place asked for.

    Raises HubError for an answer that begins elsewhere.
    """
    if response.status_code != 206:
        return at
    found = str(response.headers.get("Content-Range", ""))
    if not found.startswith(f"bytes {at}-"):
        raise HubError(f"the hub sent {found or 'no place'} of {file.path}, not from byte {at} on")
    return 0


def _cannot_write(folder: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk of {folder} is full: make room, or set HF_HOME to a folder on another "
            "drive, then pull again; what has arrived is kept"
        )
    return f"cannot write into {folder}: {error.strerror or error}"
