"""Walks forward through a file of hostile bytes and never holds more than a window of it."""

from __future__ import annotations

import struct
from typing import Protocol

from localmoe.errors import ModelFormatError

WINDOW_NBYTES = 1 << 20
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class RandomReader(Protocol):
    """Bytes that can be read from any place: an unbuffered file, or what stands for one."""

    def seek(self, offset: int, /) -> int:
        """Go to a place."""
        ...

    def read(self, nbytes: int, /) -> bytes:
        """Return so many bytes, fewer at the end."""
        ...


class ByteCursor:
    """A position in a little-endian file of `nbytes` bytes.

    Every length is compared with what is left of the file before a byte is read or allocated.
    `what`, in messages, names the thing being read. Raises ModelFormatError past the end.
    """

    def __init__(
        self, file: RandomReader, path: str, nbytes: int, window_nbytes: int = WINDOW_NBYTES
    ) -> None:
        """Start at byte 0 of `file`, which stays the caller's to close."""
        self._window_nbytes = window_nbytes
        self._file, self.path, self.nbytes = file, path, nbytes
        self._start, self._at = 0, 0  # file offset of the window, position inside it
        self._window = b""

    @property
    def position(self) -> int:
        """Bytes from the start of the file."""
        return self._start + self._at

    @property
    def remaining(self) -> int:
        """Bytes between the position and the end of the file."""
        return self.nbytes - self.position

    def take(self, nbytes: int, what: str) -> bytes:
        """Return the next bytes. The caller bounds `nbytes` to what it is ready to hold."""
        if len(self._window) - self._at < nbytes:
            self._refill(nbytes, what)
        chunk = self._window[self._at : self._at + nbytes]
        self._at += nbytes
        return chunk

    def rewind(self) -> None:
        """Go back to the start of the file."""
        self._start, self._at, self._window = 0, 0, b""

    def u32(self, what: str) -> int:
        """Return the next unsigned 32-bit number."""
        return int(_U32.unpack(self.take(4, what))[0])

    def u64(self, what: str) -> int:
        """Return the next unsigned 64-bit number."""
        return int(_U64.unpack(self.take(8, what))[0])

    def skip(self, nbytes: int, what: str) -> None:
        """Move past bytes without reading them."""
        self._require(nbytes, what)
        self._at += nbytes

    def skip_strings(self, count: int, what: str) -> None:
        """Move past `count` strings, each a 64-bit length and so many bytes."""
        unpack = _U64.unpack_from
        while count:
            if len(self._window) - self._at < 8:
                self._refill(8, what)
            window, at, last = self._window, self._at, len(self._window) - 8
            while count and at <= last:
                at += 8 + unpack(window, at)[0]
                count -= 1
            self.skip(at - self._at, what)

    def _require(self, nbytes: int, what: str) -> None:
        if nbytes > self.remaining:
            raise ModelFormatError(
                f"{self.path} is truncated or damaged: {what} at byte {self.position} needs "
                f"{nbytes} bytes, but only {self.remaining} are left of the file's {self.nbytes}. "
                "Download it again."
            )

    def _refill(self, nbytes: int, what: str) -> None:
        """Let the window start at the position and hold at least `nbytes`."""
        self._require(nbytes, what)
        self._start, self._at = self.position, 0
        self._file.seek(self._start)
        self._window = self._file.read(min(max(nbytes, self._window_nbytes), self.remaining))
        if len(self._window) < nbytes:
            raise ModelFormatError(
                f"{self.path} became shorter while its header was read. "
                "Wait until it is complete, then try again."
            )
