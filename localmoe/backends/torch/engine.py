"""The torch engine: one model, one context, experts streamed into slots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from localmoe.backends.base import FloatArray, Logits, Stats
from localmoe.backends.checkpoint_engine import CheckpointEngine
from localmoe.backends.torch import state
from localmoe.backends.torch.kv_cache import KvCache
from localmoe.backends.torch.served_model import ServedModel
from localmoe.backends.torch.tokenizer import TorchTokenizer
from localmoe.cache.slots import SlotPool
from localmoe.planning.plan import MemoryPlan

STARTS_OVER = frozenset({"jamba"})
"""transformers forgets what came before where these are given several tokens at once."""


class TorchEngine(CheckpointEngine[ServedModel, KvCache]):
    """Implements `backends.base.Engine`. Made by `backends.torch.load`."""

    library = "torch"

    def __init__(
        self,
        served: ServedModel,
        tokenizer: TorchTokenizer,
        plan: MemoryPlan,
        generation_defaults: dict[str, float],
    ) -> None:
        context = KvCache(served.model.config, plan.context_tokens)
        super().__init__(served, context, tokenizer, plan, generation_defaults)

    @property
    def slot_pool(self) -> SlotPool:
        """The slots under the cache."""
        return self._open().levels.pool

    @property
    def note(self) -> str:
        """What a user should know of how it runs; see `NotedEngine`."""
        return self._open().server.note

    def save(self, path: Path) -> None:
        """Write the context's state; see `Engine.save`. Raises EngineError."""
        state.write(self._kv, path, self._open().stamp)

    def restore(self, path: Path) -> None:
        """Read back a state; see `Engine.restore`. Raises EngineError."""
        served = self._open()
        self._kv.replace(*state.read(self._kv, path, served.stamp, served.model.device))

    def stats(self) -> Stats:
        """Return a snapshot of the counters."""
        served = self._open()
        cache = served.cache.stats()
        return Stats(
            tokens=self._decoded,
            hits=cache.hits + served.server.table_hits,
            misses=cache.misses,
            read_bytes=served.levels.below.stats().read_bytes,
            stall_seconds=served.server.stall_seconds,
            decode_seconds=self._seconds,
            split_layers=served.server.split_layers,
            copied_bytes=cache.read_bytes if served.levels.has_device else 0,
        )

    def _chunks(self, tokens: list[int], logits: Logits) -> Iterator[tuple[list[int], int]]:
        """Cut tokens into steps, each with how many of its last tokens' logits are wanted."""
        length = self._chunk_tokens(logits)
        starts_over = self.architecture in STARTS_OVER
        start = 0
        while start < len(tokens):
            # Steps are taken one after the other: the position is that of what was read before.
            chunk = tokens[start : start + (1 if starts_over and self.position else length)]
            start += len(chunk)
            is_last = start == len(tokens)
            yield chunk, len(chunk) if logits == "all" else int(logits == "last" and is_last)

    def _compute(self, served: ServedModel, chunk: Sequence[int], wanted: int) -> FloatArray:
        found: FloatArray = served.step(chunk, self._kv.cache, wanted).numpy()
        self._kv.tokens.extend(chunk)
        return found
