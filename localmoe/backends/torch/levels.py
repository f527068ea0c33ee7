"""The caches of one model: in host memory, and above it in a device's memory where there is one."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from torch import Tensor

from localmoe.backends.torch.device import TorchDevice
from localmoe.backends.torch.slot_weights import memory_tensor
from localmoe.backends.torch.source import TorchSource
from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.link import Link
from localmoe.cache.policies import UseRates
from localmoe.cache.policy_table import POLICIES
from localmoe.cache.slots import SlotLayout, SlotPool
from localmoe.cache.supply import FileSupply
from localmoe.cache.uploads import Uploads
from localmoe.cache.warm_start import hottest
from localmoe.closing import Closing
from localmoe.settings import Progress, Settings


@dataclass(frozen=True)
class Levels(Closing):
    """`cache` is the one that modules ask, `slots` lie under it, in `memory`, uint8.

    `pool` is in host memory, with the cache `below`; without a device it is that one.
    """

    cache: ExpertCache
    slots: SlotLayout
    memory: Tensor
    below: ExpertCache
    pool: SlotPool
    link: Link | None
    """Between the two."""
    undo: ExitStack

    @property
    def has_device(self) -> bool:
        """Whether there are two levels."""
        return self.link is not None

    def used(self) -> None:
        """Say that what was to be computed with slots has been asked for, so far."""
        if self.link:
            self.link.used()

    def warm_up(self, rates: UseRates, progress: Progress | None = None) -> None:
        """Have the experts that are used most in slots.

        Into host memory they are read while nobody asks; a device has them when this returns.
        To be called once, before anything is asked for. Raises ExpertReadError.
        """
        self.below.warm_up(rates)
        if self.has_device:
            self._fill(rates, progress)

    def close(self) -> None:
        """Free all slots, and stop the reads. May be called twice."""
        self.undo.close()

    def _fill(self, rates: UseRates, progress: Progress | None) -> None:
        """Copy experts into the device's slots until these are full."""
        of_layer: dict[int, list[int]] = {}
        for limit, each in zip(self.slots.limits, self.slots.classes, strict=True):
            for key in hottest(each.layers, rates, limit):
                of_layer.setdefault(key.layer, []).append(key.expert)
        done, total = 0, sum(map(len, of_layer.values()))
        for layer, experts in of_layer.items():
            # As many at once as one step may ask for: host memory has room for so many.
            lease = self.cache.acquire_ahead(layer, experts)
            if lease is None:
                return
            n_parts = len(self.slots.classes[self.slots.class_index(layer)].part_nbytes)
            with lease:
                for part in range(n_parts):
                    lease.wait(part)
            done += len(experts)
            if progress:
                progress("loading experts", done, total)


def one_level(source: TorchSource, counts: tuple[int, ...], settings: Settings) -> Levels:
    """Make slots in host memory, and the cache over them."""
    with ExitStack() as undo:
        pool, cache = _host(source, counts, settings, undo)
        memory = memory_tensor(pool.memory)
        return Levels(cache, pool, memory, cache, pool, None, undo.pop_all())


def two_levels(
    source: TorchSource,
    counts: tuple[tuple[int, ...], tuple[int, ...]],
    settings: Settings,
    device: TorchDevice,
) -> Levels:
    """Make slots on a device and behind them in host memory; `counts` are in this order.

    Raises BudgetError, EngineError, torch.OutOfMemoryError.
    """
    above, behind = counts
    layers = source.catalog.layers
    with ExitStack() as undo:
        pool, below = _host(source, behind, settings, undo)
        host = memory_tensor(pool.memory)
        pinned = device.pin(host)
        if pinned:
            undo.callback(pinned.close)
        slots = SlotLayout(source.device_classes, above)
        memory = device.allocate(slots.nbytes)
        link = device.link(host, memory)
        policy = POLICIES[settings.policy]
        # What host memory can hold whole need not come back from the device.
        exclusive = any(n < c.n_experts for n, c in zip(behind, pool.classes, strict=True))
        supply = Uploads(layers, slots, below, link, exclusive=exclusive)
        cache = ExpertCache(layers, slots, supply, policy=policy)
        undo.callback(cache.close)
        return Levels(cache, slots, memory, below, pool, link, undo.pop_all())


def _host(
    source: TorchSource, counts: tuple[int, ...], settings: Settings, undo: ExitStack
) -> tuple[SlotPool, ExpertCache]:
    layers = source.catalog.layers
    pool = SlotPool(source.slot_classes, counts)
    undo.callback(pool.close)
    supply = FileSupply(layers, pool, source.files, settings.read_workers)
    cache = ExpertCache(layers, pool, supply, policy=POLICIES[settings.policy])
    undo.callback(cache.close)
    return pool, cache
