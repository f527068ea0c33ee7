"""Experts for modules that are computed later than they are called.

MLX computes when results are asked for. What was called and not computed yet would read whatever
lies in a slot by then: so experts stay held until everything that may read them was evaluated.
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

    def begin(self) -> None:
        """A step begins. Raises InterruptedDecodeError."""
        if self.interrupted:
            raise InterruptedDecodeError("the decode was interrupted")

    def serve(self, switch: Switch, table: Numbers, x: mx.array, indices: mx.array) -> mx.array:
        """Return what the experts `indices`, [..., K], make of `x`, [..., D]: [..., K, D].

        `table`, [E], is for the slots of this layer's experts. Raises ExpertReadError,
        InterruptedDecodeError.
        """
        if self.interrupted:
            raise InterruptedDecodeError("the decode was interrupted")
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
        module: Any = switch.module
        result: mx.array = module(x, mx.array(table[numbers]))
        self._pending.append((result, lease))
        return result

    def finish(self) -> None:
        """A step has ended, well or not: nothing reads slots any more."""
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
