"""Uses an expert cache as the compiled callback does."""

from __future__ import annotations

import ctypes as C
from collections.abc import Iterator, Sequence

from localmoe.cache.expert_cache import ExpertCache
from localmoe.native.library import Library


class CompiledUser:
    """One request at a time; `slots` are those of its experts, {expert: slot}."""

    def __init__(self, library: Library, cache: ExpertCache) -> None:
        assert cache.compiled
        self._library, self.experts = library, cache.compiled
        self._at = C.addressof(self.experts.struct)

    def acquire(self, layer: int, ids: Sequence[int]) -> bool:
        """Return whether the request was taken; where not, Python has to serve it."""
        numbers = (C.c_int32 * len(ids))(*ids)
        row = self.experts.rows[layer]
        return bool(self._library.experts_acquire(self._at, row, C.addressof(numbers), len(ids)))

    @property
    def slots(self) -> dict[int, int]:
        s = self.experts.struct
        return dict(zip(s.experts[: s.n_used], s.slots[: s.n_used], strict=True))

    @property
    def n_missing(self) -> int:
        return int(self.experts.struct.n_loads)

    def wait(self, part: int) -> bool:
        """Return False where there was trouble."""
        return bool(self._library.experts_wait(self._at, part))

    def arrivals(self, part: int) -> Iterator[list[int]]:
        """Yield places of experts as their part comes."""
        n = self.experts.struct.n_used
        pending = (C.c_int32 * n)(*range(n))
        at = 0
        while at < n:
            where = C.addressof(pending) + 4 * at
            here = self._library.experts_arrivals(self._at, part, where, n - at)
            assert here > 0, "trouble"
            yield pending[at : at + here]
            at += here

    def release(self) -> None:
        self._library.experts_release(self._at)

    def take_error(self) -> BaseException:
        """Return what went wrong; begin anew."""
        error = self.experts.take_error()
        self.experts.struct.trouble = 0
        return error
