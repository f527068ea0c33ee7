"""Experts for slots on a device: copied from the slots of a cache in host memory."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from localmoe.cache.downloads import Downloads
from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.lease import Lease
from localmoe.cache.link import Copies, Link, Run
from localmoe.cache.placement import Placement
from localmoe.cache.reader import Job, Load
from localmoe.cache.slots import SlotLayout
from localmoe.errors import BudgetError, ExpertReadError
from localmoe.weights.catalog import ExpertKey, MoeLayer


class _Piece(NamedTuple):
    """One part of an expert that is to be copied; for its load it is number `load_part`."""

    load: Load
    part: int
    load_part: int


@dataclass(eq=False)
class _Batch:
    """Experts of a layer that are held below until they have been copied."""

    lease: Lease
    coming: list[_Piece]
    is_whole: bool
    """Whether all parts are copied."""
    copies: Copies | None = None
    has_failed: bool = False
    reads: Mapping[int, Load] = field(init=False)

    def __post_init__(self) -> None:
        self.reads = {load.key.expert: load for load in self.lease.pending}


class Uploads:
    """The supply of a cache on a device. `below` holds experts in host memory, and reads them.

    If it is exclusive, an expert is held in one of the two levels: below when it leaves the device.
    Else what the device holds may be in host memory, too.

    All of it is done by the thread that uses both caches: copies are begun when it asks for
    experts, and when it looks whether they have come. A part counts as come when its copy has been
    begun: whoever waits for it has what it computes next wait for the copy.
    """

    def __init__(
        self,
        layers: Iterable[MoeLayer],
        slots: SlotLayout,
        below: ExpertCache,
        link: Link,
        *,
        exclusive: bool,
    ) -> None:
        layers = tuple(layers)
        self._layers = {layer.layer: layer for layer in layers}
        self.placement = Placement(layers, slots, block=1)
        self._below, self._link = below, link
        self._downloads = Downloads(self.placement, below, link) if exclusive else None
        self._batches: deque[_Batch] = deque()
        self._copies: dict[tuple[Load, int], Copies] = {}

    def bring(self, loads: Iterable[Load]) -> None:
        """See Supply."""
        loads = list(loads)
        n_parts = len(self._layers[loads[0].key.layer].parts)
        pieces = [_Piece(load, part, part) for part in range(n_parts) for load in loads]
        self._bring(pieces, is_whole=True)

    def bring_part(self, loads: Iterable[Load], part: int) -> None:
        """See Supply."""
        self._bring([_Piece(load, part, 0) for load in loads], is_whole=False)

    def look(self, *, wait: bool = False) -> None:
        """Begin to copy what has come into host memory; with `wait`, once something has.

        Experts whose copies have ended are let go below.
        """
        if wait:
            batch = next((batch for batch in self._batches if batch.coming), None)
            read = batch.reads.get(batch.coming[0].load.key.expert) if batch else None
            if batch and read:
                read.until(batch.coming[0].part)
        for batch in self._batches:
            self._advance(batch)
        for batch in [batch for batch in self._batches if self._is_over(batch)]:
            self._let_go(batch)

    def order(self, load: Load, part: int) -> None:
        """Have what is computed next wait for the copy of a part."""
        copies = self._copies.pop((load, part), None)
        if copies:
            self._link.order(copies)

    def leaving(self, key: ExpertKey, slot: int) -> None:
        """See Supply."""
        if self._downloads:
            self._downloads.begin(key, slot)

    def read(self, job: Job) -> None:
        """Refuse: see Supply, and the class."""
        error = OSError(errno.ENOTSUP, "experts reach a device by the thread that computes")
        job.load.arrived(job.part, ExpertReadError(*job.extent, error))

    def close(self) -> None:
        """Wait for the copies under way, and let go what they come from. May be called twice."""
        while self._batches:
            self._finish_oldest()
        if self._downloads:
            self._downloads.finish()

    def _bring(self, pieces: list[_Piece], *, is_whole: bool) -> None:
        self.look()
        experts = dict.fromkeys(piece.load.key.expert for piece in pieces)
        try:
            lease = self._hold(pieces[0].load.key.layer, list(experts))
        except BudgetError as error:  # it belongs to whoever waits: their slots are taken already
            for piece in pieces:
                piece.load.arrived(piece.load_part, error)
            return
        for piece in pieces:
            piece.load.pulled_by = self
        self._batches.append(_Batch(lease, pieces, is_whole))
        self.look()

    def _hold(self, layer: int, experts: list[int]) -> Lease:
        """Hold experts below; copies under way give back what they hold if there is no room."""
        while True:
            try:
                return self._below.acquire(layer, experts)
            except BudgetError:
                if not self._batches:
                    raise
                self._finish_oldest()

    def _finish_oldest(self) -> None:
        batch = self._batches[0]
        while batch.coming:
            for piece in batch.coming:
                read = batch.reads.get(piece.load.key.expert)
                if read:
                    read.until(piece.part)
            self._advance(batch)
        if batch.copies:
            batch.copies.wait()
        self._let_go(batch)

    def _let_go(self, batch: _Batch) -> None:
        """Give back what was held below; there it is not needed if the device has all of it."""
        self._batches.remove(batch)
        layer, experts = batch.lease.layer, list(batch.lease.slots)
        batch.lease.close()
        if self._downloads and batch.is_whole:
            self._below.discard(layer, experts)

    def _is_over(self, batch: _Batch) -> bool:
        if batch.coming or not batch.copies:
            return False
        if batch.has_failed:  # so long as it is held, nobody can try again
            batch.copies.wait()
        return batch.copies.done()

    def _advance(self, batch: _Batch) -> None:
        """Begin the copies of the pieces that have come below."""
        away: list[_Piece] = []
        come: list[tuple[_Piece, Exception | None]] = []
        for piece in batch.coming:
            read = batch.reads.get(piece.load.key.expert)
            if read and not read.ready(piece.part):
                away.append(piece)
                continue
            error = read.error if read else None
            batch.has_failed |= error is not None
            if error is None:
                self._copy(batch.lease, piece)
            come.append((piece, error))
        if not come:
            return
        batch.coming = away
        batch.copies = copies = self._link.uploads()
        for piece, error in come:
            self._copies[piece.load, piece.load_part] = copies
            piece.load.arrived(piece.load_part, error)

    def _copy(self, lease: Lease, piece: _Piece) -> None:
        layer, expert = piece.load.key
        if self._downloads:
            self._downloads.clear(layer, piece.load.slot)
        run = Run(
            self._below.placement.start(layer, lease.slots[expert], piece.part),
            self.placement.start(layer, piece.load.slot, piece.part),
            self._layers[layer].parts[piece.part].expert_nbytes,
        )
        self._link.upload(run)
