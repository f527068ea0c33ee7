"""More experts of one layer than there are slots: they pass through a few slots in groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from localmoe.cache.lease import Lease
from localmoe.cache.reader import Load
from localmoe.weights.catalog import MoeLayer

_Step = tuple[int, int]  # part, group
_LEAST_LENT = 8
"""Slots for two groups that keep the reader's threads busy."""


def slots_to_lend(count: int, held: int) -> int:
    """Return how many of `count` slots a sweep borrows where so many hold what it needs, too."""
    return max(count - held, min(_LEAST_LENT, count // 2), 1)


class Sweep:
    """Serves every expert of a layer, part by part, in groups that fit into borrowed slots.

    `passes(part)` yields groups as {expert: slot}; the bytes of that part are in place until the
    next group is asked for. Experts that were in slots before stay there, and come first. While
    one group is used, the next one is read, across parts too: a part has a place of its own in
    the slot, so nothing that is still in use is overwritten. Close it when the layer is done, or
    when `passes` was left before its end.
    """

    def __init__(
        self,
        layer: MoeLayer,
        held: Lease,
        missing: Sequence[int],
        slots: Sequence[int],
        read: Callable[[int, Mapping[int, int]], list[Load]],
        give_back: Callable[[Sweep], None],
    ) -> None:
        """`slots` are borrowed; `read` starts to read a part of experts, {expert: slot}."""
        self.layer = layer.layer
        self.slots = tuple(slots)
        """What is borrowed; none once the sweep is closed."""
        self._n_parts, self._held = len(layer.parts), held
        self._read, self._give_back = read, give_back
        # Two banks of slots: one is in use while the other is filled.
        size = max(1, len(slots) // 2)
        self._banks = [slots[:size], slots[size : 2 * size]][: min(2, len(slots))]
        self._groups = [missing[i : i + size] for i in range(0, len(missing), size)]
        self._loads: dict[_Step, list[Load]] = {}
        self._swept: set[int] = set()

    @property
    def contents(self) -> Mapping[int, int]:
        """Which expert each borrowed slot holds whole: {expert: slot}, once all parts are swept."""
        if len(self._swept) < self._n_parts:
            return {}
        last: dict[int, int] = {}
        for group in range(len(self._groups)):
            last |= {slot: expert for expert, slot in self._slots_of(group).items()}
        return {expert: slot for slot, expert in last.items()}

    def passes(self, part: int) -> Iterator[Mapping[int, int]]:
        """Yield groups of experts, each with the slots in which this part can be used.

        Raises ExpertReadError.
        """
        steps = self._steps_from(part)
        for step in steps[: len(self._banks)]:
            self._begin(step)
        if self._held.slots:
            self._held.wait(part)
            yield self._held.slots
        for group in range(len(self._groups)):
            for load in self._loads[part, group]:
                load.wait(0)
            yield self._slots_of(group)
            del self._loads[part, group]
            for step in steps[group + 1 : group + 1 + len(self._banks)]:
                self._begin(step)
        self._swept.add(part)

    def groups(self) -> Iterator[Mapping[int, int]]:
        """Yield groups of experts of which all parts are in place: instead of `passes`.

        What was yielded must have been used when the next group is asked for. Raises
        ExpertReadError.
        """
        parts = range(self._n_parts)
        for group in range(len(self._groups))[: len(self._banks)]:
            self._begin_whole(group)
        if self._held.slots:
            for part in parts:
                self._held.wait(part)
            yield self._held.slots
        for group in range(len(self._groups)):
            for part in parts:
                for load in self._loads[part, group]:
                    load.wait(0)
            yield self._slots_of(group)
            for part in parts:
                del self._loads[part, group]
            if group + len(self._banks) < len(self._groups):
                self._begin_whole(group + len(self._banks))
        self._swept.update(parts)

    def close(self) -> None:
        """Wait for reads under way, then give the slots back. May be called twice."""
        for loads in self._loads.values():
            for load in loads:
                load.drain()
        self._loads.clear()
        self._held.close()
        if self.slots:
            self._give_back(self)
            self.slots = ()

    def _steps_from(self, part: int) -> list[_Step]:
        """Return what is read from this part on: its groups, then the first ones of the next."""
        groups = range(len(self._groups))
        later = [p for p in range(self._n_parts) if p not in self._swept and p != part]
        following = [(later[0], group) for group in groups] if later else []
        return [(part, group) for group in groups] + following[: len(self._banks)]

    def _slots_of(self, group: int) -> dict[int, int]:
        bank = self._banks[group % len(self._banks)]
        return dict(zip(self._groups[group], bank, strict=False))

    def _begin_whole(self, group: int) -> None:
        for part in range(self._n_parts):
            self._begin((part, group))

    def _begin(self, step: _Step) -> None:
        """Start the reads of a group's part, unless they are under way."""
        if step not in self._loads:
            part, group = step
            self._loads[step] = self._read(part, self._slots_of(group))
