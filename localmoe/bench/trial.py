"""Tries a model before it is downloaded: a few of its layers, with random weights, for real.

From what a token takes in so many layers follows what it takes in all of them: computing grows with
the bytes that a token is multiplied with, waiting with the layers that have experts.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from localmoe.backends.llama.load import load
from localmoe.backends.llama.planned import plan_model
from localmoe.bench.decode import measure_engine
from localmoe.bench.request import DecodeRequest
from localmoe.bench.rerouted import reroute
from localmoe.errors import SettingsError
from localmoe.lab.modelled import modelled_trace
from localmoe.lab.scaling import scaled
from localmoe.lab.shapes import shape_of
from localmoe.planning.hit_rate import REPEATED_SHARE
from localmoe.planning.machine import available_memory_bytes
from localmoe.planning.token_work import TokenWork
from localmoe.prediction.trace import Trace
from localmoe.settings import Progress, Settings
from localmoe.synthetic.config import Config
from localmoe.synthetic.writer import model_nbytes, write_checkpoint, write_stand_in

_HYBRID_STEP = 4
_UNLIKE_ITSELF = (26, 27)
"""Numbers of layers by which llama.cpp takes deepseek2 for one of its small forms."""
HEADER_NBYTES = 16 << 20


Answer = dict[str, Any]


@dataclass(frozen=True)
class TrialRequest:
    """What a person asks to try."""

    config: Config
    quantization: str
    settings: Settings
    """As they would run the whole model."""
    tokens: int = 32
    recorded: Trace | None = None
    """Routing to follow, stretched to the model's shape; None: it is made up."""


def try_model(
    request: TrialRequest, path: Path, disk_bytes: int, progress: Progress | None = None
) -> Answer:
    """Write a part of a model to `path`, run it, and say what the whole would take.

    `progress(stage, done, total)` hears of bytes, then of tokens. The file stays. Raises
    BudgetError where the whole model does not fit the settings' memory, SettingsError where
    `disk_bytes` are too few, OSError.
    """
    config, quantization = request.config, request.quantization
    budget = request.settings.memory_bytes or available_memory_bytes()
    write_stand_in(path, config, quantization)
    whole = plan_model(path, request.settings, budget)
    plan = whole.slot_plan.plan
    trial = Trial(
        config,
        quantization,
        layers_within(config, quantization, disk_bytes),
        plan.slots / plan.experts,
        request.tokens,
    )
    trace = trial_trace(trial, request.recorded)
    write_checkpoint(path, trial.reduced, quantization, progress)
    tried = plan_model(path, replace(request.settings, slots=trial.slots()), budget)
    report = _measure(path, trial, request.settings, trace, progress)
    return {
        "model": f"{config.name} at {quantization}",
        "routing_source": _said_of_routing(request.recorded),
        "budget_bytes": budget,
        **extrapolate(report, trial, tried.work, whole.work),
        "measured": report,
    }


def _said_of_routing(recorded: Trace | None) -> str:
    if recorded is None:
        return (
            f"Routing was made up: {REPEATED_SHARE:.0%} of a token's experts are those of the "
            "token before, the rest is chance; --trace follows a recording."
        )
    return f"Routing followed {recorded.model or 'a recording'}, stretched to this model's shape."


@dataclass(frozen=True)
class Trial:
    """What to try: `layers` of a model's own number, on the disk, with this share held."""

    config: Config
    quantization: str
    layers: int
    held_share: float
    """Of the routed experts, how many memory holds in the whole model, and so here."""
    tokens: int
    prompt_tokens: int = 8
    warm_up_tokens: int = 48

    @property
    def reduced(self) -> Config:
        """The model that is written and run."""
        return self.config.with_layers(self.layers)

    @property
    def length(self) -> int:
        """Tokens from the first of the prompt to the last that counts."""
        return self.prompt_tokens + self.warm_up_tokens + self.tokens

    def slots(self) -> int | None:
        """Return how many slots the reduced model gets; None: all experts are in memory."""
        if self.held_share >= 1:
            return None
        total = len(self.reduced.moe_layers) * self.config.experts
        return max(2 * self.config.experts_used, round(self.held_share * total))


def layers_within(config: Config, quantization: str, disk_bytes: int) -> int:
    """Return how many of a model's layers fit so many bytes; its dense ones come first.

    Raises SettingsError where not even one layer with experts does.
    """
    step = _HYBRID_STEP if config.delta else config.moe_step
    least = config.dense_layers + step
    counts = [n for n in range(least, config.layers + 1, step) if _is_itself(config, n)]
    fitting = [n for n in counts if _nbytes(config, quantization, n) <= disk_bytes]
    if not fitting:
        needed = _nbytes(config, quantization, least) / 1e9
        raise SettingsError(
            f"{config.name} at {quantization} takes {needed:.1f} GB with {least} layers, the "
            "fewest that say something; --disk allows "
            f"{disk_bytes / 1e9:.1f} GB. Give it more, or take a smaller quantization"
        )
    return fitting[-1]


def _is_itself(config: Config, layers: int) -> bool:
    return config.architecture != "deepseek2" or layers not in _UNLIKE_ITSELF


def _nbytes(config: Config, quantization: str, layers: int) -> int:
    return sum(model_nbytes(config.with_layers(layers), quantization)) + HEADER_NBYTES


def trial_trace(trial: Trial, recorded: Trace | None) -> Trace:
    """Return the routing to follow: a recording stretched to the model's shape, or made up."""
    reduced = trial.reduced
    layers = len(reduced.moe_layers)
    if recorded is None:
        return modelled_trace(layers, reduced.experts, reduced.experts_used, trial.length)
    shape = shape_of(reduced, reduced.name)
    stretched = scaled(recorded, shape)
    if stretched.n_tokens < trial.length:
        raise SettingsError(
            f"the trace has {stretched.n_tokens} tokens, and {trial.length} are needed: record "
            "more, or ask for fewer --tokens"
        )
    return stretched


def _measure(
    path: Path, trial: Trial, settings: Settings, trace: Trace, progress: Progress | None
) -> Answer:
    """Run the written model along the trace; return what `bench decode` measures of it."""
    request = DecodeRequest(
        str(path),
        replace(settings, slots=trial.slots(), context_tokens=max(64, trial.length + 16)),
        tokens=trial.tokens,
        prompt_tokens=trial.prompt_tokens,
        warm_up_tokens=trial.warm_up_tokens,
    )
    with load(path, request.settings, progress) as engine:
        reroute(engine, trace)
        return dict(measure_engine(engine, request, progress))


def extrapolate(report: dict[str, Any], trial: Trial, tried: TokenWork, whole: TokenWork) -> Answer:
    """Return what a token of the whole model takes, from what one took of a part."""
    seconds = statistics.median(report["extra"]["token_seconds"])
    samples = report["extra"]["resident_token_seconds"]
    computing = min(seconds, statistics.median(samples)) if samples else seconds
    waiting = seconds - computing
    weights = (whole.resident_nbytes + whole.routed_nbytes) / (
        tried.resident_nbytes + tried.routed_nbytes
    )
    layers = whole.moe_layers / tried.moe_layers
    return {
        "tried_layers": trial.layers,
        "layers": trial.config.layers,
        "held_share": trial.held_share,
        "tried_token_seconds": seconds,
        "tried_computing_seconds": computing,
        "tried_waiting_seconds": waiting,
        "weights_ratio": weights,
        "moe_layers_ratio": layers,
        "token_seconds": computing * weights + waiting * layers,
        "tokens_per_second": 1 / (computing * weights + waiting * layers),
        "hit_rate": report["hit_rate"],
        "read_bytes_per_token": whole.routed_nbytes * (1 - (report["hit_rate"] or 0.0)),
    }
