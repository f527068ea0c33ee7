"""Stand-ins for model files: all of the header, the whole length, none of the data.

llama.cpp maps a model file with MAP_POPULATE, which reads all of it. It is given a skeleton
instead: a sparse file in memory that begins with the checkpoint's own header. Once llama.cpp has
checked the offsets against its length, and before it maps it, the skeleton is cut to the header;
populating then ends at the first page behind it. The weights are read by localmoe itself. No
privilege is needed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence

from localmoe.closing import Closing
from localmoe.weights.gguf_header import GgufHeader


class Skeleton(Closing):
    """One sparse stand-in per shard; `paths` are what llama.cpp opens. A context manager."""

    def __init__(self, headers: Sequence[GgufHeader]) -> None:
        self._headers = tuple(headers)
        self._fds: list[int] = []
        self._temporary: list[str] = []
        self.paths: list[str] = []
        try:
            for header in headers:
                self._add(header)
        except BaseException:
            self.close()
            raise

    def shrink(self) -> None:
        """Cut every stand-in to its header."""
        for fd, header in zip(self._fds, self._headers, strict=True):
            os.ftruncate(fd, header.data_offset)

    def close(self) -> None:
        """Remove the stand-ins. May be called twice."""
        for fd in self._fds:
            os.close(fd)
        for path in self._temporary:
            os.unlink(path)
        self._fds, self._temporary = [], []

    def _add(self, header: GgufHeader) -> None:
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("localmoe-skeleton")
            self.paths.append(f"/proc/self/fd/{fd}")
        else:
            fd, path = tempfile.mkstemp(prefix="localmoe-", suffix=".gguf")
            self._temporary.append(path)
            self.paths.append(path)
        self._fds.append(fd)
        with open(header.path, "rb") as file, os.fdopen(os.dup(fd), "wb") as copy:
            left = header.data_offset
            while left:
                chunk = file.read(min(left, 1 << 20))
                if not chunk:
                    break  # the file shrank since its header was read: llama.cpp's check says so
                copy.write(chunk)
                left -= len(chunk)
        os.ftruncate(fd, header.file_nbytes)
