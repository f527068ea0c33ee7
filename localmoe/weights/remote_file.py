"""Reads the start of a file that lies on Hugging Face, by range requests."""

from __future__ import annotations

import os
import threading
import time

from localmoe.errors import HubError
from localmoe.weights.hub import Listing, open_range
from localmoe.weights.quantized_files import HubFile

_MOST_NBYTES = 4 << 20
"""Of a request; each is twice as long as the one before, or as long as what is wanted."""
_MOST_SECONDS = 300.0
"""For one file."""


class Allowance:
    """How much may be fetched of all files of a model together. Safe for use by several threads."""

    def __init__(self, nbytes: int) -> None:
        self._nbytes = self._left = nbytes
        self._lock = threading.Lock()

    def take(self, nbytes: int, file: HubFile) -> None:
        """Count what is about to be fetched. Raises HubError."""
        with self._lock:
            if nbytes > self._left:
                raise HubError(
                    f"the headers up to that of {file.path} are longer than {self._nbytes >> 20} "
                    "MiB: they are damaged, or not what they seem"
                )
            self._left -= nbytes


class RemoteFile:
    """A file that is read from its start through range requests; what was read stays locally.

    `local` is the descriptor of a file that is as long. `step` bytes are asked for at first.
    """

    def __init__(
        self, listing: Listing, file: HubFile, local: int, allowance: Allowance, step: int
    ) -> None:
        self._listing, self._file, self._local = listing, file, local
        self._allowance, self._step = allowance, step
        self._at = 0
        self._deadline = time.monotonic() + _MOST_SECONDS
        self._fetched_nbytes = 0  # the local file has so many bytes from the start

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
        while self._fetched_nbytes < end:
            start = self._fetched_nbytes
            wanted = min(max(self._step, end - start), _MOST_NBYTES)
            piece = self._request(start, min(wanted, self._file.nbytes - start))
            os.pwrite(self._local, piece, start)
            self._fetched_nbytes += len(piece)
            self._step = min(2 * self._step, _MOST_NBYTES)

    def _request(self, offset: int, nbytes: int) -> bytes:
        self._allowance.take(nbytes, self._file)
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
