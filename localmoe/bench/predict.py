"""How well the next layers' experts can be told in advance, without acting on it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from localmoe.backends.llama.engine import LlamaEngine
from localmoe.backends.llama.routing_log import RoutingLog
from localmoe.bench.streamed import streamed_engine
from localmoe.bench.tokens import token_stream
from localmoe.errors import SettingsError
from localmoe.prediction.score import score_history, warm_up_tokens
from localmoe.prediction.trace import Trace
from localmoe.prediction.trace_reader import read_trace
from localmoe.settings import Progress, Settings

_FEWEST_TOKENS = 8
Report = dict[str, object]


@dataclass(frozen=True)
class PredictRequest:
    """Decode `tokens` tokens of a stream, or of a text, and score what was guessed meanwhile."""

    model: str
    settings: Settings = field(default_factory=Settings)
    tokens: int = 256
    text: str | None = None
    """What is decoded, instead of the stream of all benchmarks."""


def score_trace(path: Path) -> Report:
    """Score the predictors that need no hidden state on a recorded trace.

    Returns what `--json` prints. Raises ModelError.
    """
    trace = read_trace(path)
    return {"source": path.name, "guess_seconds": None, "unknown_layers": None, **_scores(trace)}


def score_model(request: PredictRequest, progress: Progress | None = None) -> Report:
    """Load the model, decode, score. Returns what `--json` prints. Raises LocalMoeError."""
    trace, log = follow_model(request, progress)
    return {
        "source": trace.model,
        "guess_seconds": log.seconds / log.guesses if log.guesses else None,
        "unknown_layers": sorted(log.unknown_layers),
        **_scores(trace),
    }


def follow_model(
    request: PredictRequest, progress: Progress | None = None
) -> tuple[Trace, RoutingLog]:
    """Load the model, decode; return what was routed and guessed. Raises LocalMoeError."""
    with streamed_engine(request.model, request.settings, progress) as engine:
        tokens = _tokens(request, engine)
        layers = {layer.layer: layer for layer in engine.catalog.layers}
        log = RoutingLog(layers, request.settings.n_threads)
        try:
            engine.watch_routing(log.watch)
            for done, token in enumerate(tokens, start=1):
                engine.decode([token])
                if progress:
                    progress("decoding", done, len(tokens))
        finally:
            engine.watch_routing(None)
            log.close()
        name = Path(request.model).name
        return replace(log.trace(), moe_layers=engine.catalog.layers, model=name), log


def _tokens(request: PredictRequest, engine: LlamaEngine) -> list[int]:
    if request.text is None:
        tokens = token_stream(request.tokens, engine.tokenizer.n_vocab)
    else:
        tokens = engine.tokenizer.encode(request.text, special=False)[: request.tokens]
    if not _FEWEST_TOKENS <= len(tokens) <= engine.plan.context_tokens:
        raise SettingsError(
            f"{len(tokens)} tokens are there to decode; wanted are {_FEWEST_TOKENS} to "
            f"{engine.plan.context_tokens}, the context. Give other --tokens, --text or --context."
        )
    return tokens


def _scores(trace: Trace) -> Report:
    _, scores = score_history(trace)
    return {
        "tokens": trace.n_tokens,
        "scored_tokens": trace.n_tokens - warm_up_tokens(trace),
        "layers": list(trace.layers),
        "experts_per_layer": trace.n_experts,
        "experts_used": trace.n_experts_used,
        "expert_bytes": trace.mean_expert_nbytes,
        "predictors": scores,
    }
