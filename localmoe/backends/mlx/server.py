"""Experts for modules that are computed later than they are called.

MLX computes when results are asked for. What was called and not computed yet would read whatever
lies in a slot by then: so experts stay held until everything that may read them was evaluated.

Where all experts are in slots nothing is overwritten: a step is evaluated as a whole then, as
mlx-lm does it, and who was asked for is counted afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx import nn

from localmoe.backends.mlx.switches import Switch
from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.lease import Lease
from localmoe.errors import InterruptedDecodeError

Numbers = npt.NDArray[np.uint32]


class ExpertServer:
    """Between a model's switches and the cache. Used by the thread that computes."""

    def __init__(self, cache: ExpertCache, evaluate: Callable[..., None] = mx.eval) -> None:
        """`evaluate` has arrays computed: another one is for tests of what happens without."""
        self.cache = cache
        self.interrupted = False
        """Set by anybody: the next layer raises InterruptedDecodeError."""
        self.stall_seconds = 0.0
        self.split_layers = 0
        self._evaluate = evaluate
        self._pending: list[tuple[mx.array, Lease]] = []
        self._tables: dict[int, mx.array] = {}
        """The slot of each expert by layer, [E]; nothing unless all are in slots."""
        self._is_whole = False
        self._chosen: list[tuple[int, mx.array]] = []
        """Layers and ids of a step that is evaluated as a whole, until they are counted."""

    def begin(self, n_tokens: int) -> None:
        """A step of so many tokens begins. Raises InterruptedDecodeError."""
        if self.interrupted:
            raise InterruptedDecodeError("the decode was interrupted")
        self._prepare(n_tokens)

    def _prepare(self, n_tokens: int) -> None:
        """Decide whether a step is evaluated as a whole."""
        occupancy = self.cache.occupancy
        if not occupancy.is_full:
            self._tables = {}
        elif not self._tables and self.cache.has_all():
            self._tables = {
                layer: mx.array([occupancy.slot_of[key] for key in keys], mx.uint32)
                for layer, keys in occupancy.keys.items()
            }
        # A long step is evaluated by layers: between them it can be interrupted.
        self._is_whole = n_tokens == 1 and bool(self._tables)

    def serve(self, switch: Switch, table: Numbers, x: mx.array, indices: mx.array) -> mx.array:
        """Return what the experts `indices`, [..., K], make of `x`, [..., D]: [..., K, D].

        `table`, [E], is for the slots of this layer's experts. Raises ExpertReadError,
        InterruptedDecodeError.
        """
        if self.interrupted:
            raise InterruptedDecodeError("the decode was interrupted")
        module: Any = switch.module
        if self._is_whole:
            self._chosen.append((switch.layer, indices))
            whole: mx.array = module(x, self._tables[switch.layer][indices])
            return whole
        self._settle(indices)
        numbers: Numbers = np.array(indices)
        ids = numbers.ravel().tolist()
        if not self.cache.fits(switch.layer, ids):
            return self._in_groups(switch, table, x, numbers)
        lease = self.cache.acquire(switch.layer, ids)
        if lease.pending:
            self._wait(lease, len(switch.arrays))
        for expert, slot in lease.slots.items():
            table[expert] = slot
        result: mx.array = module(x, mx.array(table[numbers]))
        self._pending.append((result, lease))
        return result

    def count(self) -> None:
        """A step was evaluated: tell the cache what it asked for, unless its layers did."""
        chosen, self._chosen = self._chosen, []
        self._evaluate(*(indices for _, indices in chosen))
        for layer, indices in chosen:
            self.cache.acquire(layer, np.array(indices).ravel().tolist()).close()

    def finish(self) -> None:
        """A step has ended, well or not: nothing reads slots any more."""
        self._chosen = []
        try:
            self._settle()
        finally:
            self.cache.finish_step()

    def _settle(self, *arrays: mx.array) -> None:
        """Evaluate these, and whatever may still read slots; then let those slots go."""
        pending, self._pending = self._pending, []
        try:
            self._evaluate(*arrays, *(result for result, _ in pending))
        finally:
            for _, lease in pending:
                lease.close()

    def _wait(self, lease: Lease, n_parts: int) -> None:
        began = time.perf_counter()
        try:
            for part in range(n_parts):
                lease.wait(part)
        except BaseException:
            lease.close()
            raise
        finally:
            self.stall_seconds += time.perf_counter() - began

    def _in_groups(self, switch: Switch, table: Numbers, x: mx.array, numbers: Numbers) -> mx.array:
        """Compute expert by expert what asks for more of them than there are slots."""
        self.split_layers += 1
        rows, flat, n_used = x.reshape(-1, x.shape[-1]), numbers.ravel(), numbers.shape[-1]
        module: Any = switch.module
        results, places = [], []
        with closing(self.cache.sweep(switch.layer, flat.tolist())) as sweep:
            groups = sweep.groups()
            while True:
                asked = time.perf_counter()
                group = next(groups, None)
                self.stall_seconds += time.perf_counter() - asked
                if group is None:
                    break
                for expert, slot in group.items():
                    table[expert] = slot
                here = np.flatnonzero(np.isin(flat, list(group)))
                slots = mx.array(table[flat[here]])[:, None]
                result = module(rows[mx.array(here // n_used)], slots)[:, 0]
                self._evaluate(result)
                results.append(result)
                places.append(here)
        order = np.argsort(np.concatenate(places))
        return mx.concatenate(results)[mx.array(order)].reshape(*numbers.shape, -1)


class ServedSwitch(nn.Module):  # type: ignore[misc]
    """Stands where a switch stood: the same call, no parameters."""

    def __init__(self, switch: Switch, server: ExpertServer) -> None:
        super().__init__()
        table = np.zeros(switch.n_experts, np.uint32)

        def serve(x: mx.array, indices: mx.array) -> mx.array:
            return server.serve(switch, table, x, indices)

        self._serve = serve

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """See ExpertServer.serve."""
        return self._serve(x, indices)
