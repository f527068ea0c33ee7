"""The right to use some experts of a layer for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from localmoe.cache.reader import Load
from localmoe.closing import Closing


class Lease(Closing):
    """Experts of one layer, pinned until closed. `slots` maps expert to slot number."""

    def __init__(
        self,
        layer: int,
        release: Callable[[Lease], None],
        meanwhile: Iterable[Callable[[], None]] = (),
    ) -> None:
        """`meanwhile`: what is called before a long wait, for it costs no time then."""
        self.layer = layer
        self.slots: dict[int, int] = {}
        self._release, self._meanwhile = release, meanwhile
        self.pending: list[Load] = []
        """Loads of this lease that were not complete when it was made."""

    def ready(self, part: int) -> bool:
        """Return whether this part of every expert is in place."""
        return all(load.ready(part) for load in self.pending)

    def wait(self, part: int) -> None:
        """Block until this part of every expert is in place. Raises ExpertReadError."""
        for load in self.pending:
            load.wait(part)

    def arrivals(self, part: int, experts: Sequence[int]) -> Iterator[list[int]]:
        """Yield places in `experts` as their part comes: first those that are there, if any.

        Raises ExpertReadError.
        """
        loads = {load.key.expert: load for load in self.pending}
        coming = list(range(len(experts)))
        while coming:
            away = [p for p in coming if (e := experts[p]) in loads and not loads[e].ready(part)]
            if len(away) == len(coming):
                if len(away) > 1:  # a single read is over sooner
                    self._work_meanwhile()
                loads[experts[away[0]]].wait(part)
                continue
            there = [place for place in coming if place not in away]
            for place in there:
                if experts[place] in loads:
                    loads[experts[place]].wait(part)  # raises if the read failed
            yield there
            coming = away

    def _work_meanwhile(self) -> None:
        for work in self._meanwhile:
            work()
        self._meanwhile = ()

    def close(self) -> None:
        """Unpin. Waits for reads under way first; experts whose read failed are forgotten."""
        self._release(self)
