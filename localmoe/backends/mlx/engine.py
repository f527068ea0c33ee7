"""The MLX engine: one model, one context, experts streamed into slots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from localmoe.backends.base import FloatArray, Logits, Stats
from localmoe.backends.checkpoint_engine import CheckpointEngine
from localmoe.backends.mlx import state
from localmoe.backends.mlx.kv_cache import PromptCache
from localmoe.backends.mlx.pipeline import Pipeline
from localmoe.backends.mlx.pipelined import PipelinedModel
from localmoe.backends.mlx.served_model import ServedModel
from localmoe.backends.torch.tokenizer import TorchTokenizer
from localmoe.cache.slots import SlotPool
from localmoe.planning.plan import MemoryPlan

State = tuple[list[Any], list[int]]
"""Caches, and the tokens that they have seen."""


class MlxEngine(CheckpointEngine[ServedModel, PromptCache]):
    """Implements `backends.base.Engine`. Made by `backends.mlx.load`."""

    library = "MLX"
    failures = (RuntimeError, ValueError)

    def __init__(
        self,
        served: ServedModel,
        tokenizer: TorchTokenizer,
        plan: MemoryPlan,
        generation_defaults: dict[str, float],
    ) -> None:
        context = PromptCache(served.model, plan.context_tokens)
        super().__init__(served, context, tokenizer, plan, generation_defaults)

    @property
    def slot_pool(self) -> SlotPool:
        """The slots under the cache."""
        return self._open().pool

    def save(self, path: Path) -> None:
        """Write the context's state; see `Engine.save`. Raises EngineError."""
        state.write(self._kv, path, self._open().stamp)

    def restore(self, path: Path) -> None:
        """Read back a state; see `Engine.restore`. Raises EngineError."""
        self.take_state(self.read_state(path))

    def read_state(self, path: Path) -> State:
        """Return what `save` wrote, for `take_state`. Raises EngineError."""
        return state.read(self._kv, path, self._open().stamp, self._plan.context_tokens)

    def take_state(self, found: State) -> None:
        """Have a state in place of what the context holds."""
        self._kv.replace(*found)

    def stats(self) -> Stats:
        """Return a snapshot of the counters."""
        served = self._open()
        cache = served.cache.stats()
        return Stats(
            tokens=self._decoded,
            hits=cache.hits,
            misses=cache.misses,
            read_bytes=cache.read_bytes,
            stall_seconds=served.server.stall_seconds,
            decode_seconds=self._seconds,
            split_layers=served.server.split_layers,
        )

    @property
    def stage(self) -> Pipeline:
        """The part of the model that this is, where `Settings.ranks` says that it is one."""
        served = self._open()
        assert isinstance(served, PipelinedModel)
        return served.pipeline

    def join(self, chunk_tokens: int) -> None:
        """Become one of several ranks: connect, and read prompts in steps as long as theirs."""
        self.stage.join()
        self._plan = replace(self._plan, prefill_chunk_tokens=chunk_tokens)

    def _chunks(self, tokens: list[int], logits: Logits) -> Iterator[tuple[list[int], int]]:
        """Cut tokens into steps, each with how many of its last tokens' logits are wanted.

        As mlx-lm does it: where only the last logits are wanted, its token is a step of its own,
        so that the output matrix is multiplied once.
        """
        length = self._chunk_tokens(logits)
        ahead = len(tokens) - 1 if logits == "last" else len(tokens)
        for start in range(0, ahead, length):
            chunk = tokens[start : min(start + length, ahead)]
            yield chunk, len(chunk) if logits == "all" else 0
        if logits == "last":
            yield tokens[ahead:], 1

    def _compute(self, served: ServedModel, chunk: Sequence[int], wanted: int) -> FloatArray:
        return served.step(chunk, self._kv, wanted)
