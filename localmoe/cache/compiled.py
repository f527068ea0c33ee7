"""What compiled code shares with an expert cache: who is in which slot, who may go, what was done.

The compiled code serves single tokens' experts by itself. It changes the tables as it does so and
writes a log; the cache reads the log before it does anything else. Python changes the tables in
turn when no compiled request is held, or from within `settle`.
"""

from __future__ import annotations

import ctypes as C
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from localmoe.cache.supply import FileSupply
from localmoe.errors import ExpertReadError
from localmoe.native.library import (
    ABSENT,
    ELSEWHERE,
    MOST_PARTS,
    NOT_PREPARED,
    SETTLE,
    Class,
    Experts,
    Layer,
    Library,
    Part,
)
from localmoe.weights.catalog import ExpertKey, ExpertPart, MoeLayer

_LOG_WORDS = 1 << 14
_FULL_WORDS = 1 << 10
"""From here on the log is read at the end of a step: a few tokens' worth."""
_SETTLE_WORDS = 64
"""From here on, some layers' worth, a long wait is used to read it."""
_CANDIDATES = 64
"""Listed at once: what a token or two of a model with many layers evict."""


class Put(NamedTuple):
    """An expert that was given a slot, and who had it before, if anybody had."""

    key: ExpertKey
    slot: int
    victim: ExpertKey | None


class Request(NamedTuple):
    """One token's experts of a layer, and those of them that were missing."""

    layer: int
    ids: list[int]
    puts: list[Put]


class CompiledExperts:
    """The tables of one cache. Close it before the slots and the files."""

    def __init__(
        self,
        library: Library,
        layers: Sequence[MoeLayer],
        supply: FileSupply,
        settle: Callable[[], None],
        evicts: Sequence[bool],
    ) -> None:
        """`evicts` says for each size class whether its candidates stay right long enough.

        `settle` reads the log and lists candidates; what it raises is kept in `error`."""
        self._library, self._layers, self._pool = library, layers, supply.pool
        self._settle_cache = settle
        self.error: BaseException | None = None
        self.rows = {layer.layer: row for row, layer in enumerate(layers)}
        self._slots = [(C.c_int32 * m.n_experts)(*[ABSENT] * m.n_experts) for m in layers]
        self._parts = [self._parts_of(layer, supply, evicts) for layer in layers]
        counts = self._pool.counts
        self._demanded = [(C.c_uint64 * n)() for n in counts]
        self._holders = [(C.c_int32 * (2 * n))(*[ABSENT] * (2 * n)) for n in counts]
        self._candidates = [(C.c_int32 * n)() for n in counts]
        self._log = (C.c_int32 * _LOG_WORDS)()
        self._layer_table = (Layer * len(layers))(*map(self._layer, range(len(layers))))
        self._class_table = (Class * len(counts))(*map(self._class, range(len(counts))))
        self.struct: Experts = library.make(Experts)
        self.struct.layers = C.addressof(self._layer_table)
        self.struct.classes = C.addressof(self._class_table)
        self.struct.settle = self._settle = SETTLE(self._call_settle)
        self.struct.log, self.struct.log_size = C.addressof(self._log), _LOG_WORDS
        self.struct.settle_at = _SETTLE_WORDS
        self.reads = library.experts_open(C.addressof(self.struct)) == 0
        """Whether missing experts are read here, too; without io_uring hits alone are served."""
        self._open = True

    @classmethod
    def make(
        cls,
        library: Library | None,
        layers: Sequence[MoeLayer],
        supply: FileSupply | None,
        settle: Callable[[], None],
        evicts: Sequence[bool],
    ) -> CompiledExperts | None:
        """Return the tables; None without a library, or where it cannot say how the parts lie.

        That is so where there are too many, or where they are not expert after expert in files.
        """
        if library is None or supply is None:
            return None
        if any(len(layer.parts) > MOST_PARTS for layer in layers):
            return None
        if any(not isinstance(part, ExpertPart) for layer in layers for part in layer.parts):
            return None
        return cls(library, layers, supply, settle, evicts)

    def coming(self, key: ExpertKey, slot: int) -> None:
        """An expert is on its way: whoever asks for it has to ask Python."""
        self._hold(key, slot, ELSEWHERE)

    def here(self, key: ExpertKey, slot: int) -> None:
        """An expert is whole in its slot."""
        self._hold(key, slot, slot)

    def gone(self, key: ExpertKey, slot: int) -> None:
        """A slot is free."""
        self._hold(key, slot, ABSENT)
        holders = self._holders[self._pool.class_index(key.layer)]
        holders[2 * slot] = holders[2 * slot + 1] = ABSENT

    def invalidate(self) -> None:
        """Make compiled code ask for candidates anew: Python has evicted, or holds, some."""
        for table in self._class_table:
            table.n_candidates = 0

    def list_candidates(self, class_index: int, slots: Sequence[int]) -> None:
        """Tell which slots may be used anew, in this order, as of the last known request."""
        table = self._class_table[class_index]
        self._candidates[class_index][: len(slots)] = list(slots)
        table.n_candidates, table.next_candidate = len(slots), 0
        table.listed_at = self.struct.known

    def n_candidates(self, class_index: int) -> int:
        """Return how many to list for a class."""
        used = max(layer.n_experts_used for layer in self._pool.classes[class_index].layers)
        return min(max(_CANDIDATES, 3 * used), self._pool.limits[class_index])

    @property
    def is_full(self) -> bool:
        """Whether the log has grown so long that it should be read."""
        return bool(self.struct.log_used > _FULL_WORDS)

    def requests(self) -> Iterator[Request | ExpertKey]:
        """Empty the log: requests in their order, and keys whose reads have failed."""
        words, at = self._log[: self.struct.log_used], 0
        self.struct.log_used = 0
        while at < len(words):
            n, row, n_missing = words[at : at + 3]
            if n < 0:
                yield ExpertKey(self._layers[row].layer, n_missing)
                at += 3
                continue
            at += 3 + n
            puts = words[at : at + 4 * n_missing]
            layer = self._layers[row].layer
            yield Request(layer, words[at - n : at], list(self._puts(layer, puts)))
            at += 4 * n_missing

    def take_error(self) -> BaseException:
        """Return what went wrong: an error of Python's, or the read that failed."""
        error, self.error = self.error, None
        if error:
            return error
        s = self.struct
        part = self._layers[s.failed_row].parts[s.failed_part]
        ((path, offset, nbytes),) = part.expert_pieces(s.failed_expert)
        cause = OSError(s.failed_errno, "") if s.failed_errno else None
        return ExpertReadError(path, offset, nbytes, cause)

    def close(self) -> None:
        """Wait for reads under way. May be called twice."""
        if self._open:
            self._open = False
            self._library.experts_close(C.addressof(self.struct))

    def _puts(self, layer: int, words: Sequence[int]) -> Iterator[Put]:
        for i in range(0, len(words), 4):
            expert, slot, row, victim = words[i : i + 4]
            had = ExpertKey(self._layers[row].layer, victim) if row >= 0 else None
            yield Put(ExpertKey(layer, expert), slot, had)

    def _hold(self, key: ExpertKey, slot: int, shown: int) -> None:
        row = self.rows[key.layer]
        self._slots[row][key.expert] = shown
        holders = self._holders[self._pool.class_index(key.layer)]
        holders[2 * slot : 2 * slot + 2] = [row, key.expert]

    def _call_settle(self) -> None:
        try:
            self._settle_cache()
        except BaseException as error:  # cannot pass through C: the hook raises it
            self.error = self.error or error
            self.struct.trouble = NOT_PREPARED

    def _layer(self, row: int) -> Layer:
        layer = self._layers[row]
        return Layer(
            C.addressof(self._slots[row]),
            C.addressof(self._parts[row]),
            layer.n_experts,
            len(layer.parts),
            self._pool.class_index(layer.layer),
        )

    def _class(self, index: int) -> Class:
        pool = self._pool
        return Class(
            pool.memory.address + pool.start(index, 0),
            pool.classes[index].stride_nbytes,
            C.addressof(self._demanded[index]),
            C.addressof(self._holders[index]),
            C.addressof(self._candidates[index]),
        )

    def _parts_of(
        self, layer: MoeLayer, supply: FileSupply, evicts: Sequence[bool]
    ) -> C.Array[Part]:
        """Return where a layer's parts lie; no descriptor where only Python can read them."""
        found = (Part * len(layer.parts))()
        may_read = evicts[self._pool.class_index(layer.layer)]
        for index, part in enumerate(layer.parts):
            (extent,) = part.expert_pieces(0)
            file = supply.files[extent.path]
            fd = file.descriptor if may_read and file.descriptor is not None else -1
            start = supply.placement.data_start(layer.layer, index)
            found[index] = Part(extent.offset, extent.nbytes, start, fd, file.block)
        return found
