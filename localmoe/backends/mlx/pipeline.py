"""A model of which this process has some layers only, split by mlx-lm's own `pipeline`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import mlx.core as mx
import mlx_lm
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache

from localmoe.backends.ranks.joined import note_joined
from localmoe.errors import EngineError, UnsupportedModelError
from localmoe.settings import Ranks

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_WIDEST_NBYTES = 4


class _Place:
    """What `pipeline` asks of a group, before there is one."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def rank(self) -> int:
        return self._ranks.rank

    def size(self) -> int:
        return self._ranks.size


class Pipeline:
    """Cuts a model down to the layers of one rank; `join` makes it one with the others."""

    _joined: ClassVar[Ranks | None] = None
    """The ranks of MLX's one group, which a process makes once."""

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        """Let go of the layers of other ranks; none of them was read.

        Until `join` the model calls its own layers alone, as if there were no others. Raises
        UnsupportedModelError.
        """
        self._ranks = ranks
        self._split: Any = _splittable(model)
        try:
            self._split.pipeline(_Place(ranks))
        except ValueError as error:
            raise UnsupportedModelError(
                f"mlx-lm does not split this model over {ranks.size} ranks ({error}): use fewer"
            ) from error
        self._split.pipeline_rank, self._split.pipeline_size = 0, 1
        self.layers = range(self._split.start_idx, self._split.end_idx)
        """The numbers of the layers that this rank has."""
        if len(make_prompt_cache(model)) != len(self.layers):
            raise _cannot_split(model)

    def owns(self, tensor: str) -> bool:
        """Whether a stored tensor is for this rank: all have what belongs to no layer."""
        found = _LAYER.search(tensor)
        return found is None or int(found[1]) in self.layers

    def exchanged_bytes(self, n_tokens: int, config: Mapping[str, Any]) -> int:
        """Return what a step holds of hidden states of other ranks: sent, received, gathered."""
        text = config.get("text_config") or {}
        width = int(config.get("hidden_size") or text.get("hidden_size") or 0)
        return (self._ranks.size + 2) * n_tokens * width * _WIDEST_NBYTES

    def join(self) -> None:
        """Connect to the other ranks, which do the same now. Raises EngineError."""
        if Pipeline._joined not in (None, self._ranks):
            raise EngineError(
                "this process has been one of several ranks already, and MLX connects a process "
                "once: load the model in a new process"
            )
        try:
            group = mx.distributed.init(strict=True, backend="ring")
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"MLX could not connect the ranks: {error}") from error
        if (group.rank(), group.size()) != (self._ranks.rank, self._ranks.size):
            raise EngineError(
                f"MLX was told of rank {group.rank()} of {group.size()}, localmoe of "
                f"{self._ranks.rank} of {self._ranks.size}: start again"
            )
        Pipeline._joined = self._ranks
        note_joined()
        self._split.pipeline_rank, self._split.pipeline_size = self._ranks.rank, self._ranks.size

    def anybody(self, says_so: bool) -> bool:
        """Return whether any rank says so; all of them ask at the same place."""
        count = mx.distributed.all_sum(mx.array(int(says_so)), stream=mx.cpu)
        mx.eval(count)
        return bool(count.item())


def _splittable(model: nn.Module) -> Any:
    found = [
        module
        for _, module in model.named_modules()
        if callable(getattr(module, "pipeline", None)) and hasattr(module, "start_idx")
    ]
    if len(found) != 1:
        raise _cannot_split(model)
    return found[0]


def _cannot_split(model: Any) -> UnsupportedModelError:
    kind = getattr(model, "model_type", type(model).__module__)
    return UnsupportedModelError(
        f"mlx-lm {mlx_lm.__version__} does not split {kind} over several machines: it has a "
        "pipeline for the families that docs/mlx-machines.md names. Run it on one machine"
    )
