"""What a token takes beside the bytes of its weights: layers, rows of matrices, attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from localmoe.bench.small_models import Measured, Run, SmallModel, attentive, bare, narrow, thin
from localmoe.planning.figures import TokenCosts
from localmoe.synthetic.config import Config

TYPE = "Q8_0"
"""Of the models that this is measured with: rows of other types are taken to cost the same."""
_SHORT, _LONG = 32, 1024
"""Prompt tokens."""
_TOKENS_FACTOR = 4
"""These models' tokens are short: more of them are measured than of others'."""
_TIMES = 2
"""Each is measured so often, and the quicker time counts: what disturbs only makes slower."""


def beside(costs: TokenCosts, measured: Measured) -> float:
    """Return what a model's token takes beside the bytes of its weights."""
    found = measured.work.layers * (costs.layer_seconds or 0.0)
    found += measured.rows * (costs.row_seconds or 0.0)
    if costs.attention_bytes_per_second:
        found += measured.model.attention_nbytes / costs.attention_bytes_per_second
    return found


@dataclass(frozen=True)
class CostModels:
    """The models that tell costs apart, measured."""

    thin: tuple[Measured, Measured, Measured]
    """Resident, with a slot less than it has experts, and with a fifth less."""
    bare: tuple[Measured, Measured]
    """Resident, and with a slot less."""
    narrow: Measured
    attentive: tuple[Measured, Measured]
    """With a short prompt, and with a long one."""

    @classmethod
    def measure(cls, folder: Path, run: Run, tokens: int, threads: int | None) -> CostModels:
        """Measure all of them. Raises LocalMoeError, OSError."""
        tokens *= _TOKENS_FACTOR

        def measured(config: Config, prompt: int = _SHORT, slots: int | None = None) -> Measured:
            model = SmallModel(config, TYPE, prompt, tokens, threads, slots)
            found = [model.measure(folder, run) for _ in range(_TIMES)]
            return min(found, key=lambda one: one.token_seconds)

        few, least = thin(), bare()
        n_experts = few.layers * few.experts
        return cls(
            thin=(
                measured(few),
                measured(few, slots=n_experts - 1),
                measured(few, slots=n_experts * 4 // 5),
            ),
            bare=(measured(least), measured(least, slots=least.layers * least.experts - 1)),
            narrow=measured(narrow()),
            attentive=(measured(attentive()), measured(attentive(), _LONG)),
        )

    @property
    def is_doubtful(self) -> bool:
        """Whether samples lie far apart."""
        every = (*self.thin, *self.bare, self.narrow, *self.attentive)
        return any(each.is_doubtful for each in every)

    def costs(self, wide: Measured | None) -> TokenCosts:
        """Tell costs apart; without a model of wide matrices everything counts as layers."""
        short, long = self.attentive
        more = long.model.attention_nbytes - short.model.attention_nbytes
        longer = long.token_seconds - short.token_seconds
        attention = more / longer if longer > 0 else None
        streaming = self._streaming()
        few, least = self.thin[0], self.bare[0]
        if wide is None:
            return replace(streaming, layer_seconds=few.token_seconds / few.work.layers)
        layer, row, _ = _shared((few, least, self.narrow, wide), attention)
        return replace(
            streaming,
            layer_seconds=layer or None,
            row_seconds=row or None,
            attention_bytes_per_second=attention,
        )

    def _streaming(self) -> TokenCosts:
        """Tell what is more where experts are streamed."""
        resident, found, missing = self.thin
        many, one = resident.work.experts_used, self.bare[0].work.experts_used
        of_many, of_one = _more(resident, found), _more(*self.bare)
        expert = max(0.0, of_many - of_one) / (many - one)
        apart = missing.token_seconds - missing.stall_seconds - found.token_seconds
        few = missing.layers_that_miss
        return TokenCosts(
            streamed_layer_seconds=max(0.0, of_many - many * expert) or None,
            streamed_expert_seconds=expert or None,
            missed_layer_seconds=max(0.0, apart) / few or None if few else None,
        )


def _more(resident: Measured, streamed: Measured) -> float:
    """Return what a layer takes more where its experts are streamed."""
    return (streamed.token_seconds - resident.token_seconds) / resident.work.moe_layers


def _shared(measured: Sequence[Measured], attention: float | None) -> list[float]:
    """Return seconds for a layer, a row and a byte; none is below zero."""
    terms = np.array([[m.work.layers, m.rows, m.nbytes] for m in measured], float)
    seconds = np.array(
        [
            m.token_seconds - (m.model.attention_nbytes / attention if attention else 0.0)
            for m in measured
        ]
    )
    kept = [0, 1, 2]
    while kept:
        # Relative: a thousandth of each counts the same.
        found = np.linalg.lstsq(
            terms[:, kept] / seconds[:, None], np.ones(len(seconds)), rcond=None
        )[0]
        if (found >= 0).all():
            break
        kept.pop(int(found.argmin()))
    answer = [0.0, 0.0, 0.0]
    for index, value in zip(kept, found if kept else (), strict=True):
        answer[index] = float(value)
    return answer
