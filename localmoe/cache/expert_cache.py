"""Which experts are in memory: hits at once, misses on their way, nothing in use evicted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from localmoe.cache.compiled import CompiledExperts
from localmoe.cache.lease import Lease
from localmoe.cache.occupancy import Occupancy
from localmoe.cache.placement import Placement
from localmoe.cache.policies import Lru, MakePolicy, UseRates, Uses
from localmoe.cache.reader import Load
from localmoe.cache.slots import SlotLayout
from localmoe.cache.stats import CacheStats
from localmoe.cache.supply import FileSupply, Supply
from localmoe.cache.sweep import Sweep, slots_to_lend
from localmoe.cache.warm_start import WarmStart, hottest
from localmoe.errors import BudgetError
from localmoe.native.library import Library
from localmoe.weights.catalog import ExpertKey, MoeLayer


class ExpertCache:
    """Experts in slots, global over all layers of a size class.

    Used by one thread. It closes its supply. `maxsize` and `currsize` count experts.
    """

    def __init__(
        self,
        layers: Iterable[MoeLayer],
        pool: SlotLayout,
        supply: Supply,
        *,
        policy: MakePolicy = Lru,
        library: Library | None = None,
    ) -> None:
        """With a `library` single tokens' experts are served by compiled code: see `compiled`."""
        layers = tuple(layers)
        self._layers = {layer.layer: layer for layer in layers}
        self._pool, self._supply = pool, supply
        self._warm = WarmStart(supply.placement.jobs, supply.read)
        o = self.occupancy = Occupancy(layers, pool, policy)
        self._keys, self._slot_of, self._free = o.keys, o.slot_of, o.free
        self._policies, self._counters = o.policies, o.counters
        self._lent = [0] * len(pool.classes)
        self._loading: dict[ExpertKey, Load] = {}
        self._pins: dict[ExpertKey, int] = {}
        self._settle = [policy.settle for policy in self._policies]
        evicts = [policy.keeps_order for policy in self._policies]
        files = supply if isinstance(supply, FileSupply) else None
        make = CompiledExperts.make
        self.compiled = o.compiled = make(library, layers, files, self.settle, evicts)
        """The tables that compiled code serves single tokens from, where it does."""

    @property
    def placement(self) -> Placement:
        """Where in the slots the bytes of parts are."""
        return self._supply.placement

    @property
    def maxsize(self) -> int:
        """How many experts fit."""
        return sum(self._pool.limits)

    @property
    def currsize(self) -> int:
        """How many experts are in a slot or on their way."""
        self.occupancy.note()
        return len(self._slot_of)

    def has_all(self) -> bool:
        """Whether all experts are in slots, whole: until `resize` nothing is read or evicted."""
        coming = self._loading.values()
        return self.occupancy.is_full and not any(load.n_remaining or load.error for load in coming)

    def __contains__(self, key: ExpertKey) -> bool:
        self.occupancy.note()
        return key in self._slot_of

    def stats(self) -> CacheStats:
        """Return a snapshot of the counters."""
        self.occupancy.note()
        return self._counters.snapshot()

    def uses(self) -> dict[int, Uses]:
        """Return how often each layer's experts were used, where the policy counts that."""
        self.occupancy.note()
        return {layer: uses for policy in self._policies for layer, uses in policy.uses().items()}

    def warm_up(self, rates: UseRates) -> int:
        """Read what earlier runs used most into free slots, while nothing is demanded.

        To be called once, before anything else; failures are forgotten. Returns of how many.
        """
        begun: list[Load] = []
        for index, slot_class in enumerate(self._pool.classes):
            keys = hottest(slot_class.layers, rates, len(self._free[index]))
            begun += [self._begin(key, index) for key in keys[::-1]][::-1]  # hottest: most recent
        self._counters.prefetched += len(begun)
        self._warm.begin(begun)
        return len(begun)

    def resize(self, limits: Sequence[int]) -> None:
        """Use so many slots of each size class from now on: memory is lent, or comes back.

        Experts whose slots do not keep them are forgotten. Raises BudgetError while any are held.
        """
        if self._pins or any(self._lent):
            raise BudgetError("experts are in use: their slots cannot be lent")
        self.occupancy.take_over()
        self._pool.stop_growing()
        for key in self.occupancy.beyond(self._pool.kept(limits)):
            self._evict(key)
        self.occupancy.resize(limits)
        self._pool.set_limits(limits)
        self._pool.grow()

    def acquire(self, layer: int, ids: Iterable[int]) -> Lease:
        """Pin these experts of a layer; start reads for those that are not in a slot.

        `ids` are those of each token in turn, [T * K]. Returns at once: wait for parts on the
        lease. Raises BudgetError when that is more than there are slots that nobody holds.
        """
        ids = list(ids)
        return self._hold(layer, ids, ids)

    def _hold(self, layer: int, ids: Iterable[int], demand: Sequence[int]) -> Lease:
        """Pin some experts of a layer; `demand` is all that it routed to."""
        self._warm.hold_off()
        self.occupancy.take_over()
        class_index = self._pool.class_index(layer)
        keys = [self._keys[layer][expert] for expert in dict.fromkeys(ids)]
        is_here = self._usable if self._loading else self._slot_of.__contains__
        missing = [key for key in keys if not is_here(key)]
        if missing:
            count = self._pool.limits[class_index] - self._lent[class_index]
            self.occupancy.check_room(keys, len(missing), self._pins, count)
        if demand:
            self._policies[class_index].demand(layer, demand)
        lease = self._pin(layer, keys)
        for key in keys if self._loading else ():
            if load := self._loading.get(key):  # still on its way
                self._warm.keys.discard(key)
                lease.pending.append(load)
        self._counters.request(keys, missing)
        if missing:
            self._fetch(missing, class_index, lease)
        return lease

    def acquire_ahead(self, layer: int, ids: Iterable[int]) -> Lease | None:
        """Hold experts that will be asked for soon; `pending` are those that were missing.

        None where the slots hold less than two layers: these would be in the way.
        """
        class_index = self._pool.class_index(layer)
        if self._pool.limits[class_index] < 2 * self._pool.classes[class_index].widest_demand:
            return None
        self.occupancy.take_over()
        keys = [self._keys[layer][expert] for expert in dict.fromkeys(ids)]
        missing = [key for key in keys if not self._usable(key)]
        lease = self._pin(layer, keys)
        self._counters.read_ahead(missing)
        self._fetch(missing, class_index, lease)
        return lease

    def adopt(self, key: ExpertKey) -> Load | None:
        """Give a slot to an expert whose bytes somebody else brings; None where that is no use."""
        index = self._pool.class_index(key.layer)
        has_room = self._free[index] or self._policies[index].victim(self._pins)
        return self._begin(key, index) if has_room and key not in self._slot_of else None

    def discard(self, layer: int, ids: Iterable[int]) -> None:
        """Forget experts that are in slots for nothing, unless somebody holds them."""
        self.occupancy.take_over()
        for key in [self._keys[layer][expert] for expert in ids]:
            if key in self._slot_of and key not in self._pins and key not in self._loading:
                self._forget(key)

    def fits(self, layer: int, ids: Sequence[int]) -> bool:
        """Whether the slots could hold all of these experts of a layer at once."""
        return len(set(ids)) <= self._pool.limits[self._pool.class_index(layer)]

    def sweep(self, layer: int, ids: Iterable[int]) -> Sweep:
        """Serve more experts of a layer than fit at once: in groups, part by part.

        Experts that are there stay, so far as that leaves a few slots for the others; what is not
        held is lent to it. Raises BudgetError while anybody else holds experts of this size.
        """
        self.occupancy.take_over()
        class_index = self._pool.class_index(layer)
        if self._lent[class_index] or self._pool.count(self._pins, class_index):
            raise BudgetError(f"experts of layer {layer}'s size are in use: no sweep can begin")
        demand = list(ids)
        wanted = list(dict.fromkeys(demand))
        held = [e for e in wanted if self._usable(self._keys[layer][e])]
        count = self._pool.limits[class_index]
        lent = slots_to_lend(count, len(held))
        lease = self._hold(layer, held[: count - lent], demand)
        missing = [e for e in wanted if e not in lease.slots]
        self._counters.sweep([self._keys[layer][e] for e in missing])
        slots = [self._take_slot(class_index) for _ in range(lent)]
        self._lent[class_index] = lent
        read = partial(self._read_part, self._layers[layer])
        return Sweep(self._layers[layer], lease, missing, slots, read, self._end_sweep)

    def settle(self) -> None:
        """Learn what compiled code did, and tell it who may go next."""
        self.occupancy.note()
        self.occupancy.list_candidates((self._pins, self._loading))

    def finish_step(self) -> None:
        """Note that a step has ended: nothing is held by compiled code."""
        self._warm.hold_off()
        if self.compiled and self.compiled.is_full:
            self.occupancy.note()

    def close(self) -> None:
        """Stop the reads and their threads. The slots belong to whoever made them."""
        if self.compiled:
            self.compiled.close()
        self._warm.close()
        self._supply.close()

    def _pin(self, layer: int, keys: Iterable[ExpertKey]) -> Lease:
        """Return a lease of these keys, with the slots of those that have one."""
        lease, slot_of, pins = Lease(layer, self._release, self._settle), self._slot_of, self._pins
        for key in keys:
            pins[key] = pins.get(key, 0) + 1
            slot = slot_of.get(key)
            if slot is not None:
                lease.slots[key.expert] = slot
        return lease

    def _fetch(self, missing: list[ExpertKey], class_index: int, lease: Lease) -> None:
        """Give the missing experts slots and start their reads, all at once."""
        loads = [self._begin(key, class_index) for key in missing]
        for load in loads:
            lease.slots[load.key.expert] = load.slot
            self._counters.read_bytes += load.nbytes
        lease.pending.extend(loads)
        self._supply.bring(loads)

    def _usable(self, key: ExpertKey) -> bool:
        """Return whether a key is in a slot or coming; a guess that failed is forgotten here."""
        if key not in self._slot_of:
            return False
        load = self._loading.get(key)
        if load is None or key not in self._warm.keys:
            return True
        if not self._warm.claim(load):  # what was claimed is read on demand, at once
            if not load.error:
                return True
            load.drain()
        self._forget(key)
        return False

    def _begin(self, key: ExpertKey, class_index: int) -> Load:
        """Give a key a slot, evicting if need be, and make its load."""
        slot = self._take_slot(class_index)
        self.occupancy.put(key, slot, whole=False)
        self._loading[key] = load = Load(key, slot, self._layers[key.layer].part_nbytes)
        return load

    def _take_slot(self, class_index: int) -> int:
        """Return a slot that nobody uses, evicting if need be."""
        if not self._free[class_index]:
            victim = self._policies[class_index].victim(self._pins)
            assert victim is not None  # the caller made sure that not all are held
            self._evict(victim)
        return self._free[class_index].pop()

    def _end_sweep(self, sweep: Sweep) -> None:
        """Take the slots back; experts that came to lie in them whole stay."""
        class_index, whole = self._pool.class_index(sweep.layer), sweep.contents
        for expert, slot in whole.items():
            self.occupancy.put(self._keys[sweep.layer][expert], slot, whole=True)
        self._free[class_index].extend(set(sweep.slots) - set(whole.values()))
        self._lent[class_index] = 0

    def _evict(self, key: ExpertKey) -> None:
        """Free a slot; a read into it must have ended."""
        load = self._loading.get(key)
        if load is not None and not self._warm.claim(load):
            load.drain()
        if load is None or not load.error:
            self._supply.leaving(key, self._slot_of[key])
        self._forget(key)

    def _forget(self, key: ExpertKey) -> None:
        self.occupancy.remove(key)
        self._loading.pop(key, None)
        self._warm.keys.discard(key)

    def _read_part(self, layer: MoeLayer, part: int, slots: Mapping[int, int]) -> list[Load]:
        """Start to read one part of these experts into their slots."""
        nbytes, keys = layer.parts[part].expert_nbytes, self._keys[layer.layer]
        loads = [Load(keys[e], slot, (nbytes,)) for e, slot in slots.items()]
        self._supply.bring_part(loads, part)
        self._counters.read_bytes += nbytes * len(loads)
        return loads

    def _release(self, lease: Lease) -> None:
        for load in lease.pending:
            load.drain()
        keys, pins = self._keys[lease.layer], self._pins
        for expert in lease.slots:
            count = pins.pop(keys[expert]) - 1
            if count:
                pins[keys[expert]] = count
        for load in lease.pending:
            if self._loading.get(load.key) is not load:
                continue  # another lease on the same expert was closed first
            if not load.error:
                del self._loading[load.key]
                self.occupancy.arrived(load.key, load.slot)
            elif load.key not in self._pins:
                self._forget(load.key)
        lease.slots, lease.pending = {}, []
