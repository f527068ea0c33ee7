"""The scheduler's evaluation callback: the hook, behind compiled code where there is some."""

from __future__ import annotations

import ctypes as C
from collections.abc import Mapping

from localmoe.backends.llama.bindings import L
from localmoe.backends.llama.compiled import CompiledHook, Counts, Exchange
from localmoe.backends.llama.hook import WHAT_TO_DO, Hook, PartOf, RoutingWatch
from localmoe.backends.llama.kernels import Kernels
from localmoe.backends.llama.parameters import EvalCallback
from localmoe.cache.expert_cache import ExpertCache
from localmoe.errors import UnsupportedModelError
from localmoe.native.library import Library
from localmoe.weights.catalog import MoeLayer

_SPIN_SECONDS = 0.003
"""Longer than nearly all waits for a layer's experts."""


class Callback:
    """What llama.cpp calls while it computes. After each step, `finish` raises what went wrong."""

    def __init__(
        self,
        cache: ExpertCache,
        layers: Mapping[int, MoeLayer],
        parts: Mapping[int, PartOf],
        kernels: Kernels,
        scaled_layers: frozenset[int] = frozenset(),
        library: Library | None = None,
    ) -> None:
        """`parts` maps the address of a weight tensor to what it holds.

        With a `library`, and a cache that has it too, single tokens' layers are compiled code's.
        """
        self._cache, self._kernels = cache, kernels
        self._hook = Hook(cache, layers, parts, kernels, scaled_layers)
        self._function = L.ggml_backend_sched_eval_callback(self._hook.call)
        self._compiled: CompiledHook | None = None
        if library and cache.compiled:
            arrivals = self._hook.arrivals
            self._compiled = self._hook.compiled = CompiledHook(
                library, cache.compiled, parts, arrivals, scaled_layers, self._hook
            )

    @property
    def eval_callback(self) -> EvalCallback:
        """What llama.cpp is to call, and with what."""
        if not self._compiled:
            return self._function, None
        function = C.cast(self._compiled.address, L.ggml_backend_sched_eval_callback)
        return function, self._compiled.user_data

    @property
    def compute_buffer(self) -> range | None:
        """The addresses that the last step computed in, if it came to a layer with experts."""
        return self._hook.compute_buffer

    @property
    def stall_seconds(self) -> float:
        """Time that was waited for reads."""
        return self._hook.stall_seconds + (self._compiled.stall_seconds if self._compiled else 0.0)

    @property
    def split_layers(self) -> int:
        """How many layer steps were computed in passes."""
        return self._hook.split_layers

    @property
    def split_seconds(self) -> float:
        """Time spent on moving rows for passes."""
        return self._hook.split_seconds

    def counts(self) -> Counts | None:
        """Return what compiled code did so far; None where there is none."""
        return self._compiled.counts() if self._compiled else None

    def watch(self, watch: RoutingWatch | None) -> None:
        """Have every routing told from now on, when the reads for it are under way."""
        self._hook.watch = watch
        if self._compiled:
            self._compiled.set_watched(watch is not None)

    def exchange(self, exchange: Exchange | None) -> None:
        """Have this called with every routing before it is looked at: it may change the numbers."""
        self._hook.exchange = exchange
        if self._compiled:
            self._compiled.set_exchange(exchange)

    def share_cores(self, n_threads: int | None, *, alone: bool) -> None:
        """Compute single tokens on so many threads, with the bits of all; None: on all.

        Where nobody else wants the cores, waits keep theirs. Only compiled code does either.
        """
        if self._compiled:
            self._compiled.set_shared_threads(n_threads)
            self._compiled.set_spin(_SPIN_SECONDS if alone else 0.0)

    def interrupt(self, wanted: bool) -> None:
        """Have the next layer end the decode; called by another thread or a signal handler."""
        self._hook.interrupted = wanted
        if self._compiled:
            self._compiled.set_interrupted(wanted)

    def check_all_routed(self) -> None:
        """Raise UnsupportedModelError if a layer has not been routed in any graph so far.

        To be asked after a decode that gave logits: without them llama.cpp may leave out the end.
        """
        unrouted = self._hook.unrouted
        if unrouted and self._compiled:
            unrouted -= self._compiled.routed_layers()
        if unrouted:
            layers = ", ".join(map(str, sorted(unrouted)))
            raise UnsupportedModelError(
                f"the experts of layer {layers} were never chosen from: llama.cpp computes "
                f"something else there. {WHAT_TO_DO}"
            )

    def finish(self) -> None:
        """Let go of the last layer's experts; raise what went wrong since the last call."""
        if self._compiled:
            self._hook.routed = self._compiled.last_routed or self._hook.routed
            error = self._compiled.finish()
            self._hook.error = self._hook.error or error
        error = self._hook.finish()
        self._cache.finish_step()
        if error:
            raise error

    def close(self) -> None:
        """Free what is computed with outside of llama.cpp's graph."""
        self._kernels.close()
