"""Where a cache's experts come from: files, or the slots of a cache below."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from localmoe.cache.bounce import buffers_needed
from localmoe.cache.direct_file import DirectFile
from localmoe.cache.placement import Placement
from localmoe.cache.reader import Job, Load, Reader
from localmoe.cache.slots import SlotPool
from localmoe.weights.catalog import ExpertKey, MoeLayer


class Supply(Protocol):
    """Brings the bytes of experts into slots. Loads that are brought together are of one layer."""

    @property
    def placement(self) -> Placement:
        """Where in the slots the bytes are brought."""
        ...

    def bring(self, loads: Iterable[Load]) -> None:
        """Begin to bring whole experts, in the order in which their parts are used."""
        ...

    def bring_part(self, loads: Iterable[Load], part: int) -> None:
        """Begin to bring one part of experts; it is the only one of these loads."""
        ...

    def leaving(self, key: ExpertKey, slot: int) -> None:
        """Hear that an expert is about to lose its slot, in which it is whole."""
        ...

    def read(self, job: Job) -> None:
        """Do one read in the thread that calls; the load gets every error."""
        ...

    def close(self) -> None:
        """End what is under way. May be called twice."""
        ...


class FileSupply:
    """Reads experts from their files."""

    def __init__(
        self,
        layers: Iterable[MoeLayer],
        pool: SlotPool,
        files: Mapping[str, DirectFile],
        workers: int = 4,
    ) -> None:
        layers = tuple(layers)
        self.pool, self.files = pool, files
        self.placement = Placement(layers, pool, max(file.block for file in files.values()))
        self._reader = Reader(files, pool.memory, workers, buffers_needed(layers, workers))

    def bring(self, loads: Iterable[Load]) -> None:
        """See Supply."""
        self._reader.submit(self.placement.jobs(loads))

    def bring_part(self, loads: Iterable[Load], part: int) -> None:
        """See Supply."""
        self._reader.submit(self.placement.part_jobs(loads, part))

    def leaving(self, key: ExpertKey, slot: int) -> None:
        """See Supply: it can be read again."""

    def read(self, job: Job) -> None:
        """See Supply."""
        self._reader.read(job)

    def close(self) -> None:
        """See Supply."""
        self._reader.close()
