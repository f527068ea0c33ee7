"""Which expert is in which slot, which slots are free, and what was asked for.

Compiled code changes this, too, where it serves single tokens: `note` learns what it did, and has
to come before anything here is looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Sequence

from localmoe.cache.compiled import CompiledExperts, Request
from localmoe.cache.policies import MakePolicy
from localmoe.cache.slots import SlotLayout
from localmoe.cache.stats import Counters, ExpertWatch
from localmoe.errors import BudgetError
from localmoe.weights.catalog import ExpertKey, MoeLayer


class Occupancy:
    """The slots of a pool by who is in them. Lists and policies are by size class."""

    def __init__(self, layers: Iterable[MoeLayer], pool: SlotLayout, policy: MakePolicy) -> None:
        self._layers, self._pool = {layer.layer: layer for layer in layers}, pool
        self.keys = {
            number: tuple(ExpertKey(number, expert) for expert in range(layer.n_experts))
            for number, layer in self._layers.items()
        }
        self._n_experts = sum(map(len, self.keys.values()))
        self.slot_of: dict[ExpertKey, int] = {}
        """Experts that are in a slot, or on their way to it."""
        self.free = [list(range(count))[::-1] for count in pool.limits]
        self.policies = [policy(c.layers) for c in pool.classes]
        self.counters = Counters()
        self.compiled: CompiledExperts | None = None

    @property
    def is_full(self) -> bool:
        """Whether every expert is in a slot, or on its way to it."""
        return len(self.slot_of) == self._n_experts

    def put(self, key: ExpertKey, slot: int, *, whole: bool) -> None:
        """Put an expert into a slot that is not free any more; `whole`: its bytes are there."""
        self.slot_of[key] = slot
        self.policies[self._pool.class_index(key.layer)].insert(key)
        if self.compiled:
            tell = self.compiled.here if whole else self.compiled.coming
            tell(key, slot)

    def arrived(self, key: ExpertKey, slot: int) -> None:
        """The bytes of an expert are there now."""
        if self.compiled:
            self.compiled.here(key, slot)

    def remove(self, key: ExpertKey) -> None:
        """Free an expert's slot."""
        class_index = self._pool.class_index(key.layer)
        slot = self.slot_of.pop(key)
        self.policies[class_index].remove(key)
        self.free[class_index].append(slot)
        self.counters.forget(key)
        if self.compiled:
            self.compiled.gone(key, slot)

    def check_room(
        self,
        keys: Sequence[ExpertKey],
        n_missing: int,
        pinned: Collection[ExpertKey],
        n_slots: int,
    ) -> None:
        """Raise BudgetError unless the missing ones of a layer's keys fit beside all that is held.

        `n_slots` are those that may be used at all.
        """
        if not pinned and len(keys) <= n_slots:
            return
        held = {key for key in (*pinned, *keys) if key in self.slot_of}
        n_held = self._pool.count(held, self._pool.class_index(keys[0].layer))
        if n_held + n_missing > n_slots:
            raise BudgetError(
                f"layer {keys[0].layer} asks for {len(keys)} experts in one step, and of {n_slots} "
                f"slots {n_held + n_missing - len(keys)} are in use by others: sweep instead"
            )

    def beyond(self, limits: Sequence[int]) -> list[ExpertKey]:
        """Return the experts in slots beyond these numbers."""
        index = self._pool.class_index
        return [key for key, slot in self.slot_of.items() if slot >= limits[index(key.layer)]]

    def resize(self, limits: Sequence[int]) -> None:
        """Let slots beyond these numbers be free no more, or be free again; nobody is in them."""
        for free, before, limit in zip(self.free, self._pool.limits, limits, strict=True):
            free[:] = [*range(before, limit)[::-1], *(slot for slot in free if slot < limit)]

    @property
    def is_watched(self) -> bool:
        """Whether somebody has requests told."""
        return self.counters.watch is not None

    def watch(self, watch: ExpertWatch | None) -> Collection[ExpertKey]:
        """Have requests told from now on; None: no more. Returns who is in a slot, a view."""
        self.note()
        self.counters.watch = watch
        return self.slot_of.keys()

    def note(self) -> None:
        """Learn what compiled code did meanwhile."""
        if not self.compiled:
            return
        for what in self.compiled.requests():
            if isinstance(what, Request):
                self._note_request(what)
            else:  # its read has failed
                self.remove(what)

    def take_over(self) -> None:
        """Learn what compiled code did, and have it ask before it evicts again."""
        self.note()
        if self.compiled:
            self.compiled.invalidate()

    def list_candidates(self, skip: Sequence[Container[ExpertKey]]) -> None:
        """Tell compiled code which slots to use next: free ones, then those of experts to evict.

        Those of experts in `skip` are not for it.
        """
        if not self.compiled:
            return
        for index, policy in enumerate(self.policies):
            count = self.compiled.n_candidates(index)
            free = self.free[index][: -count - 1 : -1]
            held = policy.candidates(count) if len(free) < count else ()
            slots = [self.slot_of[key] for key in held if not any(key in keys for keys in skip)]
            self.compiled.list_candidates(index, [*free, *slots][:count])

    def _note_request(self, request: Request) -> None:
        layer, ids, puts = request
        class_index, of_layer = self._pool.class_index(layer), self.keys[layer]
        policy = self.policies[class_index]
        policy.demand(layer, ids)
        self.counters.request([of_layer[expert] for expert in ids], [put.key for put in puts])
        for key, slot, victim in puts:
            if victim:
                policy.remove(victim)
                del self.slot_of[victim]
                self.counters.forget(victim)
            else:
                self.free[class_index].remove(slot)
            self.slot_of[key] = slot
            policy.insert(key)
        self.counters.read_bytes += len(puts) * self._layers[layer].expert_nbytes
