"""Headers of a model that lies on Hugging Face: kilobytes to megabytes of it, never a weight."""

from __future__ import annotations

import os
import time
from pathlib import Path, PurePosixPath

from localmoe.errors import HubError
from localmoe.settings import Progress
from localmoe.weights.gguf_header import parse_header
from localmoe.weights.hub import Listing, open_range
from localmoe.weights.quantized_files import HubFile

MAX_HEADER_NBYTES = 256 << 20
"""Of all files together; the largest vocabularies take some megabytes."""
_WINDOW_NBYTES = 64 << 10
_FIRST_NBYTES, _MOST_NBYTES = 128 << 10, 4 << 20
"""Of a request: the first, and the longest; each is twice as long as the one before."""
_MOST_SECONDS = 300.0
"""For one file."""


def write_stand_ins(listing: Listing, folder: Path, progress: Progress | None = None) -> Path:
    """Write files with the headers of a remote model, each as long as the real one, and empty.

    Returns the first. They take as much room on the disk as their headers, and serve for everything
    that reads headers alone. Raises HubError, ModelFormatError, UnsupportedModelError.
    """
    fetched = 0
    paths = []
    for done, file in enumerate(listing.chosen.files):
        if progress:
            progress("reading headers", done, len(listing.chosen.files))
        path = folder / PurePosixPath(file.path).name
        try:
            fetched += _write_stand_in(listing, file, path, MAX_HEADER_NBYTES - fetched)
        except OSError as error:
            raise HubError(
                f"cannot keep the header of {file.path}, a file of {file.nbytes} bytes, in "
                f"{folder}: {error.strerror}"
            ) from error
        paths.append(path)
    return paths[0]


def _write_stand_in(listing: Listing, file: HubFile, path: Path, most_nbytes: int) -> int:
    """Write one file; return how much of it was fetched."""
    with path.open("x+b") as local:
        local.truncate(file.nbytes)
        remote = _RemoteFile(listing, file, local.fileno(), most_nbytes)
        where = f"{listing.repository}/{file.path}"
        header = parse_header(remote, where, file.nbytes, _WINDOW_NBYTES)
        remote.fetch(header.data_offset)
    return remote.fetched_nbytes


class _RemoteFile:
    """Reads through range requests; what was read stays in a local file."""

    def __init__(self, listing: Listing, file: HubFile, local: int, most_nbytes: int) -> None:
        self._listing, self._file, self._local = listing, file, local
        self._most = most_nbytes
        self._at = 0
        self._step = _FIRST_NBYTES
        self._deadline = time.monotonic() + _MOST_SECONDS
        self.fetched_nbytes = 0
        """The local file has so many bytes from the start."""

    def seek(self, offset: int, /) -> int:
        """Go to a place."""
        self._at = offset
        return offset

    def read(self, nbytes: int, /) -> bytes:
        """Return so many bytes, fewer at the end. Raises HubError."""
        end = min(self._at + nbytes, self._file.nbytes)
        self.fetch(end)
        return os.pread(self._local, end - self._at, self._at)

    def fetch(self, end: int) -> None:
        """Bring everything up to this place into the local file. Raises HubError."""
        while self.fetched_nbytes < end:
            start = self.fetched_nbytes
            piece = self._request(start, min(self._step, self._file.nbytes - start))
            os.pwrite(self._local, piece, start)
            self.fetched_nbytes += len(piece)
            self._step = min(2 * self._step, _MOST_NBYTES)

    def _request(self, offset: int, nbytes: int) -> bytes:
        if offset + nbytes > self._most:
            raise HubError(
                f"the header of {self._file.path} is longer than {self._most >> 20} MiB: it is "
                "damaged, or not what it seems"
            )
        with open_range(self._listing, self._file.path, offset, nbytes) as response:
            if response.status_code != 206:
                raise HubError(
                    f"the hub sends {self._file.path} as a whole only (status "
                    f"{response.status_code}): its header cannot be read alone"
                )
            piece = bytearray()
            for chunk in response.iter_bytes():
                piece += chunk
                if len(piece) > nbytes:
                    break
                if time.monotonic() > self._deadline:
                    raise HubError(
                        f"the hub sent the header of {self._file.path} too slowly: it was given "
                        f"{_MOST_SECONDS:.0f} seconds. Try again later"
                    )
        if len(piece) != nbytes:
            raise HubError(
                f"the hub sent {len(piece)} bytes of {self._file.path} where {nbytes} were "
                "asked for"
            )
        return bytes(piece)
