"""Tensors on their way from the model's files into memory: begun early, waited for late."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

from localmoe.cache.direct_file import DirectFile, pieces
from localmoe.cache.memory import HostMemory, round_up
from localmoe.errors import EngineError
from localmoe.weights.catalog import Extent

_PIECE_NBYTES = 2 << 20
_ALIGNMENT_NBYTES = 32
"""What engines rely on, and GGUF files have: tensors that lie otherwise are moved."""
OnBytes = Callable[[int], None]


class TensorReads:
    """Reads whole tensors into one region of memory, each to the place where it will be used.

    A tensor lies in memory as it does in its file modulo the block, so that nothing is copied, and
    several threads share the long ones. Pages are touched by the reads themselves.
    """

    def __init__(
        self, tensors: Mapping[str, Extent], files: Mapping[str, DirectFile], workers: int
    ) -> None:
        """Begin to read. Raises BudgetError where there is no address space for the tensors."""
        self._files = files
        self._starts: dict[str, int] = {}
        nbytes = 0
        for name, extent in tensors.items():
            block = files[extent.path].block
            lead = extent.offset % block
            nbytes = round_up(nbytes, max(block, 64))
            self._starts[name] = nbytes + (lead if lead % _ALIGNMENT_NBYTES == 0 else 0)
            nbytes += round_up(lead + extent.nbytes, block) + block
        self.memory = HostMemory(round_up(nbytes, 4096))
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="localmoe-load")
        self._reads: list[Future[int]] = [
            self._pool.submit(self._read, *piece)
            for name, extent in tensors.items()
            for piece in pieces(extent, self._starts[name], files[extent.path].block, _PIECE_NBYTES)
        ]

    def address(self, name: str) -> int:
        """Return where a tensor's first byte lies or will lie. Raises EngineError."""
        if name not in self._starts:
            raise EngineError(f"llama.cpp loads a tensor {name}, which localmoe does not know")
        return self.memory.address + self._starts[name]

    def wait(self, on_bytes: OnBytes) -> None:
        """Block until all has come; `on_bytes` is told of each piece. Raises ExpertReadError."""
        for done in as_completed(self._reads):
            on_bytes(done.result())
        self._pool.shutdown()

    def close(self) -> None:
        """Finish the reads that have begun, drop the others, give the memory back."""
        self._pool.shutdown(cancel_futures=True)
        self.memory.close()

    def _read(self, extent: Extent, start: int) -> int:
        self._files[extent.path].read(self.memory, start, extent.offset, extent.nbytes)
        return extent.nbytes
