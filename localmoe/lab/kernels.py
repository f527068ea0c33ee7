"""Compiled loops over the requests of a trace. Imported only where numba is there.

Shapes: T tokens, L layers, K experts per token; a key is layer * E + expert. A negative request is
none. Numbers come out as in the policies' Python, to the last bit.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from numba import njit

Ints = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]


@njit(cache=True, nogil=True, error_model="numpy")
def decayed_ranks(routing: Numbers, n_experts: int, weights: Floats) -> Floats:
    """Return the rank of each request as `frequency.Decayed` gives it, [T, L, K]."""
    n_tokens, n_layers, used = routing.shape
    sums = np.zeros(n_layers * n_experts)
    since = np.zeros(n_layers * n_experts, np.int64)
    ranks = np.zeros(routing.shape)
    for token in range(n_tokens):
        period, place = token // len(weights), token % len(weights)
        for layer in range(n_layers):
            for k in range(used):
                if routing[token, layer, k] < 0:
                    continue
                key = layer * n_experts + routing[token, layer, k]
                sums[key] = math.ldexp(sums[key], since[key] - period) + weights[place]
                since[key] = period
                mantissa, exponent = math.frexp(sums[key])
                ranks[token, layer, k] = period + exponent + mantissa
    return ranks


@njit(cache=True, nogil=True, error_model="numpy")
def counted_ranks(routing: Numbers, n_experts: int, learned_tokens: int) -> Floats:
    """Return the rank of each request as `frequency.Static` gives it, [T, L, K]."""
    n_tokens, n_layers, used = routing.shape
    counts = np.zeros(n_layers * n_experts)
    ranks = np.zeros(routing.shape)
    for token in range(n_tokens):
        for layer in range(n_layers):
            for k in range(used):
                if routing[token, layer, k] >= 0:
                    key = layer * n_experts + routing[token, layer, k]
                    counts[key] += token < learned_tokens
                    ranks[token, layer, k] = counts[key]
    return ranks


@njit(cache=True, nogil=True, error_model="numpy")
def next_use_ranks(routing: Numbers, n_experts: int) -> Floats:
    """Return the rank of each request as `bound.next_use_ranks` gives it, [T, L, K]."""
    n_tokens, n_layers, used = routing.shape
    coming = np.full(n_layers * n_experts, -np.inf)
    ranks = np.full(routing.shape, -np.inf)
    for token in range(n_tokens - 1, -1, -1):
        for layer in range(n_layers - 1, -1, -1):
            for k in range(used):
                if routing[token, layer, k] >= 0:
                    key = layer * n_experts + routing[token, layer, k]
                    ranks[token, layer, k] = coming[key]
                    coming[key] = -(token * n_layers + layer)
    return ranks


@njit(cache=True, nogil=True, error_model="numpy")
def _goes_before(rank: Floats, clock: Ints, one: int, other: int) -> bool:
    return bool(rank[one] < rank[other] or (rank[one] == rank[other] and clock[one] < clock[other]))


@njit(cache=True, nogil=True, error_model="numpy")
def _settle_up(heap: Ints, at: Ints, rank: Floats, clock: Ints, start: int, place: int) -> int:
    """Move an entry of the heap from `start` on towards the front; return where it stays."""
    key = heap[start + place]
    while place:
        parent = (place - 1) // 2
        above = heap[start + parent]
        if not _goes_before(rank, clock, key, above):
            break
        heap[start + place] = above
        at[above] = place
        place = parent
    heap[start + place] = key
    at[key] = place
    return place


@njit(cache=True, nogil=True, error_model="numpy")
def _settle_down(  # noqa: PLR0913 (a heap is four arrays and a place in them)
    heap: Ints, at: Ints, rank: Floats, clock: Ints, start: int, place: int, length: int
) -> None:
    key = heap[start + place]
    while True:
        child = 2 * place + 1
        if child >= length:
            break
        if child + 1 < length and _goes_before(
            rank, clock, heap[start + child + 1], heap[start + child]
        ):
            child += 1
        below = heap[start + child]
        if not _goes_before(rank, clock, below, key):
            break
        heap[start + place] = below
        at[below] = place
        place = child
    heap[start + place] = key
    at[key] = place


@njit(cache=True, nogil=True, error_model="numpy")
def _take_out(  # noqa: PLR0913
    heap: Ints, at: Ints, rank: Floats, clock: Ints, start: int, length: int, key: int
) -> None:
    """Remove a key from a heap of so many entries."""
    place, last = at[key], heap[start + length - 1]
    at[key] = -1
    if last != key:
        heap[start + place] = last
        at[last] = place
        if _settle_up(heap, at, rank, clock, start, place) == place:
            _settle_down(heap, at, rank, clock, start, place, length - 1)


@njit(cache=True, nogil=True, error_model="numpy")
def replay_ranked(  # noqa: C901 (calls are not free here)
    routing: Numbers, n_experts: int, group_of_layer: Ints, slots: Ints, ranks: Floats
) -> Bytes:
    """Return the outcome [T, L, K] of evicting the lowest rank, of equals the oldest.

    The experts of a step leave the heap while it lasts: so they are pinned.
    """
    n_tokens, n_layers, used = routing.shape
    outcome = np.full(routing.shape, 2, np.uint8)
    starts = np.cumsum(slots) - slots
    heap = np.zeros(slots.sum(), np.int64)
    lengths, free = np.zeros(len(slots), np.int64), slots.copy()
    n_keys = n_layers * n_experts
    at, clock, rank = np.full(n_keys, -1), np.zeros(n_keys, np.int64), np.zeros(n_keys)
    now = 0
    for token in range(n_tokens):
        for layer in range(n_layers):
            group = group_of_layer[layer]
            start = starts[group]
            for k in range(used):
                if routing[token, layer, k] < 0:
                    continue
                key = layer * n_experts + routing[token, layer, k]
                outcome[token, layer, k] = at[key] >= 0
                if at[key] >= 0:
                    _take_out(heap, at, rank, clock, start, lengths[group], key)
                    lengths[group] -= 1
            for k in range(used):
                if outcome[token, layer, k] == 0:
                    if free[group]:
                        free[group] -= 1
                    else:
                        _take_out(heap, at, rank, clock, start, lengths[group], heap[start])
                        lengths[group] -= 1
            for found in (1, 0):  # those that were there are older than those that came
                for k in range(used):
                    if outcome[token, layer, k] == found:
                        key = layer * n_experts + routing[token, layer, k]
                        now += 1
                        rank[key], clock[key] = ranks[token, layer, k], now
                        heap[start + lengths[group]] = key
                        _settle_up(heap, at, rank, clock, start, lengths[group])
                        lengths[group] += 1
    return outcome
