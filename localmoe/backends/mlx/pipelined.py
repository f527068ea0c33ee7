"""A served model that is one stage of a pipeline: what fails in it fails on all ranks.

A rank that left a step early would keep the others waiting for what it was to send. So an error
of an expert is kept, the step goes on with zeros, and at its end all ranks agree on whether it
counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
from mlx import nn

from localmoe.backends.base import FloatArray
from localmoe.backends.mlx.kv_cache import PromptCache
from localmoe.backends.mlx.pipeline import Pipeline
from localmoe.backends.mlx.served_model import ServedModel
from localmoe.backends.mlx.server import ExpertServer, Numbers
from localmoe.backends.mlx.slot_arrays import SlotArrays
from localmoe.backends.mlx.source import MlxSource
from localmoe.backends.mlx.switches import Switch
from localmoe.backends.ranks.told_errors import OtherRankError
from localmoe.cache.planes import PlanePool
from localmoe.errors import InterruptedDecodeError, LocalMoeError, LostRankError


class PipelinedServer(ExpertServer):
    """Serves experts; after an error nothing but zeros, until the step has ended."""

    failure: LocalMoeError | MemoryError | None = None

    def begin(self, n_tokens: int) -> None:
        """A step begins: an interrupt ends it as an error in it does."""
        interrupted = self.interrupted
        self._prepare(n_tokens)
        self.failure = InterruptedDecodeError("the decode was interrupted") if interrupted else None

    def serve(self, switch: Switch, table: Numbers, x: mx.array, indices: mx.array) -> mx.array:
        """See ExpertServer.serve; never raises what a checkpoint or a user may cause."""
        if self.failure is None:
            try:
                return super().serve(switch, table, x, indices)
            except (LocalMoeError, MemoryError) as error:
                self.failure = error
        return mx.zeros((*indices.shape, switch.n_outputs), x.dtype)


class PipelinedModel(ServedModel):
    """A stage of the model; every rank calls `step` for the same tokens."""

    def __init__(
        self,
        pipeline: Pipeline,
        model: nn.Module,
        source: MlxSource,
        slots: tuple[SlotArrays, PlanePool],
        server: PipelinedServer,
    ) -> None:
        super().__init__(model, source, slots, server)
        self._held = server
        self.pipeline = pipeline

    def step(self, tokens: Sequence[int], kv: PromptCache, wanted: int) -> FloatArray:
        """See ServedModel.step. Raises LostRankError where the ranks are out of step by now."""
        try:
            rows = super().step(tokens, kv, wanted)
            failed = self.pipeline.anybody(self._held.failure is not None)
        except Exception as error:
            raise LostRankError(
                f"MLX could not compute this step on several machines: {error}"
            ) from error
        if failed:
            raise self._held.failure or OtherRankError("another rank could not do its part")
        return rows
