"""One file that lies on several drives: reads are shared between the copies."""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Sequence

from localmoe.cache.direct_file import DirectFile
from localmoe.cache.memory import Memory
from localmoe.errors import ExpertReadError, SettingsError

_log = logging.getLogger(__name__)
_SAMPLES, _SAMPLE_NBYTES = 16, 64 << 10


class MirroredFile(DirectFile):
    """Each read goes to the copy with the fewest bytes on their way: a slow drive gets less.

    A copy whose read fails is not used any more, and the read is repeated from another one. Only
    what the last copy cannot give raises ExpertReadError.
    """

    def __init__(self, copies: Sequence[DirectFile]) -> None:
        """The first copy is the original, whose path this file has. Owns all of them."""
        self.path, self.block = copies[0].path, max(copy.block for copy in copies)
        self._all = tuple(copies)
        self._guard = threading.Lock()
        self._coming = dict.fromkeys(copies, 0)
        """Bytes on their way from each copy that is in use."""

    @property
    def direct(self) -> bool:
        """Whether reads bypass the page cache, whichever copy they are of."""
        return all(copy.direct for copy in self._all)

    @property
    def descriptor(self) -> None:
        """Nobody but `read` knows which copy to take."""
        return None

    def read(self, memory: Memory, start: int, offset: int, nbytes: int) -> None:
        """Fill memory as `DirectFile.read` does, from any copy."""
        while True:
            copy = self._take(nbytes)
            try:
                copy.read(memory, start, offset, nbytes)
                return
            except ExpertReadError as error:
                self._drop(copy, error)
            finally:
                self._give_back(copy, nbytes)

    def close(self) -> None:
        """Close all copies. May be called twice."""
        for copy in self._all:
            copy.close()

    def _take(self, nbytes: int) -> DirectFile:
        with self._guard:
            copy = min(self._coming, key=self._coming.__getitem__)
            # What is equally busy takes turns: the one that was taken goes behind the others.
            self._coming[copy] = self._coming.pop(copy) + nbytes
            return copy

    def _give_back(self, copy: DirectFile, nbytes: int) -> None:
        with self._guard:
            if copy in self._coming:
                self._coming[copy] -= nbytes

    def _drop(self, copy: DirectFile, error: ExpertReadError) -> None:
        """Use this copy no more; raise the error if it is the last."""
        with self._guard:
            if copy not in self._coming:  # another read of it failed, too
                return
            if len(self._coming) == 1:
                raise error
            del self._coming[copy]
        _log.warning("%s is not read any more: %s", copy.path, error)


def mirror_paths(mirror: str, originals: Sequence[str]) -> list[str]:
    """Return where a mirror's copies of these files lie.

    It is the copy of the only file, or one of the copies, or the folder that holds them under the
    same names.
    """
    if len(originals) == 1 and not os.path.isdir(mirror):
        return [mirror]
    folder = mirror if os.path.isdir(mirror) else os.path.dirname(mirror)
    return [os.path.join(folder, os.path.basename(path)) for path in originals]


def check_copy(original: str, copy: str, header_nbytes: int) -> None:
    """Raise SettingsError unless the files agree in length, header and some blocks in between.

    The blocks are the same ones each time, and the last bytes are among them.
    """
    try:
        nbytes, other = os.path.getsize(original), os.path.getsize(copy)
        if nbytes != other:
            raise _no_copy(original, copy, f"it has {other} bytes, not {nbytes}")
        with open(original, "rb") as ours, open(copy, "rb") as theirs:
            for position, count in _blocks(nbytes, header_nbytes):
                ours.seek(position)
                theirs.seek(position)
                if ours.read(count) != theirs.read(count):
                    what = f"they differ in the {count} bytes from {position} on"
                    raise _no_copy(original, copy, what)
    except OSError as error:
        raise SettingsError(
            f"cannot read the mirror {copy}: {error.strerror}. Leave --mirror out, or name a copy "
            f"of {original}."
        ) from error


def _blocks(nbytes: int, header_nbytes: int) -> list[tuple[int, int]]:
    """Return (position, length) of what is compared."""
    last = max(0, nbytes - _SAMPLE_NBYTES)
    rng = random.Random(nbytes)
    positions = [last, *(rng.randint(0, last) for _ in range(_SAMPLES))]
    return [(0, header_nbytes), *((position, _SAMPLE_NBYTES) for position in positions)]


def _no_copy(original: str, copy: str, why: str) -> SettingsError:
    return SettingsError(
        f"the mirror {copy} is no copy of {original}: {why}. Copy the file again, or leave "
        "--mirror out."
    )
