"""The hit rate that a recording of a model gives, at a number of slots."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from localmoe.cache.policy_table import POLICIES
from localmoe.errors import SettingsError
from localmoe.lab.layout import shared_layout
from localmoe.lab.replay import HIT, MISS, replay, without_repeats
from localmoe.prediction.score import warm_up_tokens
from localmoe.prediction.trace import Trace
from localmoe.prediction.trace_reader import read_trace
from localmoe.settings import PolicyName
from localmoe.weights.catalog import Catalog


class TraceHits:
    """Replays a recording with the slots that a plan has, and the policy of an engine."""

    def __init__(self, path: Path, catalog: Catalog, policy: PolicyName = "next-use") -> None:
        """Read a recording. Raises SettingsError where it is of another model, ModelFormatError."""
        trace = read_trace(path)
        _check(path, trace, catalog)
        self.name = path.name
        self._make = POLICIES[policy]
        self._trace = without_repeats(replace(trace, moe_layers=catalog.layers))
        self._first = warm_up_tokens(trace)

    @property
    def n_tokens(self) -> int:
        """Tokens that count; those before them fill the slots."""
        return self._trace.n_tokens - self._first

    def hit_rate(self, slots: int) -> float:
        """Return the share of requests that find their expert in so many slots."""
        outcome = replay(self._trace, shared_layout(self._trace, slots), self._make)
        scored = outcome[self._first :]
        hits = int((scored == HIT).sum())
        return hits / max(1, hits + int((scored == MISS).sum()))


def _check(path: Path, trace: Trace, catalog: Catalog) -> None:
    wanted = [(layer.layer, layer.n_experts, layer.n_experts_used) for layer in catalog.layers]
    found = [(layer, trace.n_experts, trace.n_experts_used) for layer in trace.layers]
    if wanted != found:
        raise SettingsError(
            f"{path} is of another model: it has {_said(found)}, and the model to plan for has "
            f"{_said(wanted)}. Record one of it: localmoe trace record"
        )


def _said(layers: list[tuple[int, int, int]]) -> str:
    if not layers:
        return "no layers with experts"
    _, experts, used = layers[0]
    return f"{len(layers)} layers of {experts} experts, {used} used"
