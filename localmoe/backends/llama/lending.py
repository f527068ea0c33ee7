"""Memory that slots lend to long steps: expert bytes or compute buffers, never both.

llama.cpp allocates one compute buffer, for the longest step, and nothing in it outlives a step.
Pages that shorter steps do not touch can hold experts meanwhile.
"""

from __future__ import annotations

import ctypes as C
from collections.abc import Sequence

from localmoe.backends.llama.bindings import Tensor, declare, shared_library
from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.memory import release_pages
from localmoe.planning.loans import Loan

_base = shared_library("ggml-base")
_buffer_base = declare(_base, "ggml_backend_buffer_get_base", C.c_void_p, C.c_void_p)
_buffer_size = declare(_base, "ggml_backend_buffer_get_size", C.c_size_t, C.c_void_p)


def buffer_of(node: int) -> range | None:
    """Return the addresses of the buffer that a graph node's results lie in, if it has one."""
    buffer = Tensor.from_address(node).buffer
    if not buffer:
        return None
    start = int(_buffer_base(buffer))
    return range(start, start + int(_buffer_size(buffer)))


class Lender:
    """Says before each step who has the memory; `loans` go up in tokens, the first lends nothing.

    Without any loans all memory stays where it is.
    """

    def __init__(self, cache: ExpertCache, loans: Sequence[Loan]) -> None:
        self._cache, self._loans = cache, tuple(loans)
        self._now = self._loans[0] if loans else None

    def prepare(self, tokens: int, compute_buffer: range | None) -> None:
        """Make room for a step of so many tokens, or let slots have back what it does not need.

        `compute_buffer` are the addresses that the last step computed in; None: unknown, then
        nothing is taken back from there. Not while a step is computed.
        """
        if self._now is None:
            return
        wanted = next((loan for loan in self._loans if loan.tokens >= tokens), self._loans[-1])
        if wanted.tokens < self._now.tokens:
            if compute_buffer is None:
                return
            release_pages(compute_buffer.start, compute_buffer.stop)
        if wanted is not self._now:
            self._cache.resize(wanted.counts)
            self._now = wanted
