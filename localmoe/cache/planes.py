"""Slots for engines that own their memory: each part of all slots is an array of its own."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable, Sequence

from localmoe.cache.slots import Lane, SlotClass, SlotPool
from localmoe.errors import UnsupportedModelError
from localmoe.weights.catalog import MoeLayer

_USER_SPACE_NBYTES = 1 << 47
MakePlanes = Callable[[int, int], Sequence[int]]
"""From a size class and a number of slots to the addresses of new planes, one for each part.

Those that it made before for this class are gone. For no slots there are no planes.
"""


class AddressSpace:
    """Memory that others own: positions are addresses, and nothing is given back here."""

    address = 0
    nbytes = _USER_SPACE_NBYTES

    def __init__(self) -> None:
        self.view = memoryview((ctypes.c_uint8 * self.nbytes).from_address(0)).cast("B")

    def touch(self, start: int, stop: int) -> None:
        """Do nothing: whoever owns the memory has made it ready."""

    def release(self, start: int, stop: int) -> None:
        """Do nothing: whoever owns the memory gives it back."""

    def close(self) -> None:
        """Forget the view. May be called twice."""
        self.view.release()


def plane_classes(
    layers: Sequence[MoeLayer], kind_of: Callable[[MoeLayer], Hashable], plane_nbytes: int
) -> tuple[SlotClass, ...]:
    """Group layers that can share planes: those of a kind, so many that none grows too large.

    A plane has `plane_nbytes` at most, even with a slot for every expert. Layers are dealt out in
    turn: neighbours, whose experts are used one after the other, lie in different groups. Raises
    UnsupportedModelError where one layer's experts are more than a plane may have.
    """
    kinds: dict[Hashable, list[MoeLayer]] = {}
    for layer in layers:
        kinds.setdefault(kind_of(layer), []).append(layer)
    classes: list[SlotClass] = []
    for alike in kinds.values():
        largest = max(alike[0].part_nbytes)
        widest = max(layer.n_experts for layer in alike)
        fit = plane_nbytes // (largest * widest)
        if not fit:
            raise UnsupportedModelError(
                f"the experts of layer {alike[0].layer} have parts of {largest * widest} bytes "
                f"together, and this machine's largest buffer has {plane_nbytes}"
            )
        n_groups = -(-len(alike) // fit)
        classes += [_lay_out(alike[first::n_groups]) for first in range(n_groups)]
    return tuple(classes)


def _lay_out(layers: Sequence[MoeLayer]) -> SlotClass:
    """Return a class without slack: what lies beside a part is the same part of another expert."""
    sizes = layers[0].part_nbytes
    starts = tuple(sum(sizes[:part]) for part in range(len(sizes)))
    return SlotClass(sizes, starts, sum(sizes), tuple(layers))


class PlanePool(SlotPool):
    """Slots whose parts lie in planes: part p of slot s is at plane(p) + s * the part's size.

    A plane belongs to the engine, which computes with it as one array, [slots, ...]. When there
    are to be more slots or fewer, it makes other planes: what the old ones held is lost, so that
    at no time there are more than either.
    """

    tight = True

    def __init__(
        self, classes: Sequence[SlotClass], counts: Sequence[int], make_planes: MakePlanes
    ) -> None:
        super().__init__(classes, counts, lambda _nbytes, _guard_nbytes: AddressSpace())
        self._make_planes = make_planes
        self._lanes = [
            tuple(Lane(0, nbytes, tight=True) for nbytes in each.part_nbytes) for each in classes
        ]
        for index, count in enumerate(counts):
            self._place(index, count)

    @property
    def nbytes(self) -> int:
        """Bytes of all slots that there are now."""
        return sum(
            limit * each.stride_nbytes
            for limit, each in zip(self.limits, self.classes, strict=True)
        )

    def grow(self) -> None:
        """Do nothing: planes are ready when they are made."""

    def lanes(self, layer: MoeLayer, block: int) -> tuple[Lane, ...]:
        """Return where each of a layer's parts lies; they move when there are other planes."""
        return self._lanes[self.class_index(layer.layer)]

    def kept(self, limits: Sequence[int]) -> Sequence[int]:
        """Return how many slots of each class keep what they hold: all, or none."""
        pairs = zip(limits, self.limits, strict=True)
        return [limit if limit == before else 0 for limit, before in pairs]

    def set_limits(self, limits: Sequence[int]) -> None:
        """Have so many slots of each class; all planes that change go before the first comes.

        Nobody may use a slot, or read into one.
        """
        changed = [
            index
            for index, (limit, before) in enumerate(zip(limits, self.limits, strict=True))
            if limit != before
        ]
        for index in changed:
            self._make_planes(index, 0)
        for index in changed:
            self._place(index, limits[index])
        self.limits = list(limits)

    def _place(self, index: int, count: int) -> None:
        addresses = self._make_planes(index, count)
        for lane, address in zip(self._lanes[index], addresses, strict=True):
            lane.start = address
