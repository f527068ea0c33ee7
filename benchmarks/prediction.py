"""Claim: reading ahead what the next layer's router is expected to choose does not pay here.

    python benchmarks/prediction.py [--model FILE.gguf] [--memory-mib 3072]

One model, loaded once. A stretch of tokens is decoded again and again, from the same place: without
reading ahead, with guesses of the next layer's router, and with the truth, which was noted before,
of which a share was replaced by experts chosen at random. So the record also says which share of
the guesses would have to be true, if they cost nothing. Sides alternate.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from manifest import SCRATCH, entry_state, options, record
from synthetic import Shape, synthetic_model

from localmoe import Settings, load
from localmoe.backends.llama.engine import LlamaEngine
from localmoe.backends.llama.kernels import Kernels
from localmoe.backends.llama.routers import Routers
from localmoe.bench.tokens import token_stream
from localmoe.prediction.guesses import Guess, Guesses

Watch = Callable[[int, int, Sequence[int]], None]
Side = dict[str, Any]
PROMPT, WARM_UP, BETWEEN = 32, 64, 16
PROTECT_LAYERS = 2


class Truth:
    """Notes what was routed, and tells it later with so many errors."""

    def __init__(self, engine: LlamaEngine) -> None:
        self._engine, self._noted = engine, list[tuple[int, list[int]]]()
        self._experts = {m.layer: m.n_experts for m in engine.catalog.layers}
        self._at, self._share, self._random = 0, 1.0, random.Random(0)

    def note(self, _node: int, layer: int, experts: Sequence[int]) -> None:
        self._noted.append((layer, list(experts)))

    def replay(self, share: float) -> Watch:
        """Return a watch that reads ahead; `share` of what it names is true."""
        self._at, self._share, self._random = 0, share, random.Random(0)
        return self._tell

    def _tell(self, _node: int, _layer: int, _experts: Sequence[int]) -> None:
        self._at += 1
        if self._at < len(self._noted):
            later, truth = self._noted[self._at]
            draw = self._random
            named = [
                expert if draw.random() < self._share else draw.randrange(self._experts[later])
                for expert in truth
            ]
            read_ahead(self._engine, later, named)


class NextLayer:
    """Guesses with the next layer's router, and reads the surest `count` experts ahead."""

    def __init__(self, engine: LlamaEngine, threads: int) -> None:
        layers = engine.catalog.layers
        self._engine, self._kernels = engine, Kernels(threads)
        self._routers = Routers(self._kernels)
        used = max(m.n_experts_used for m in layers)
        self._guesses = Guesses([m.layer for m in layers], used, self._routers.product)
        self._open: dict[int, tuple[int, Guess]] = {}
        self.count = 0

    def watch(self, node: int, layer: int, experts: Sequence[int]) -> None:
        routing = self._routers.read(node, layer)
        if routing is None:
            raise SystemExit(f"the router of layer {layer} is not recognised")
        if not self._guesses.knows(layer):
            self._guesses.add(layer, routing.router)
        told = self._open.pop(layer, None)
        if told:
            self._guesses.learn(*told, routing.probabilities)
        later = self._guesses.target(layer, 1)
        if later is not None:
            guess = self._guesses.guess(layer, later, routing.state)
            self._open[later] = layer, guess
            read_ahead(self._engine, later, guess.experts[: self.count])

    def close(self) -> None:
        self._kernels.close()


def read_ahead(engine: LlamaEngine, layer: int, experts: Sequence[int]) -> None:
    """Drop what was read in vain, then read into an idle queue."""
    cache = engine.cache
    assert cache is not None
    cache.cancel_prefetches()
    cache.prefetch(layer, experts, protect=PROTECT_LAYERS)


def measure(engine: LlamaEngine, tokens: Sequence[int], watch: Watch | None) -> Side:
    """Decode token by token; return what it took."""
    cache = engine.cache
    assert cache is not None
    engine.watch_routing(watch)
    before, ahead = engine.stats(), cache.stats()
    seconds = []
    for token in tokens:
        began = time.perf_counter()
        engine.decode([token])
        seconds.append(time.perf_counter() - began)
    engine.watch_routing(None)
    spent, count = engine.stats() - before, len(tokens)
    return {
        "tokens_per_second": count / sum(seconds),
        "token_seconds": seconds,
        "hit_rate": spent.hit_rate,
        "read_bytes_per_token": spent.read_bytes / count,
        "stall_seconds_per_token": spent.stall_seconds / count,
        "read_ahead_per_token": (cache.stats().prefetched - ahead.prefetched) / count,
    }


def run(engine: LlamaEngine, n_tokens: int, n_rounds: int, threads: int) -> dict[str, list[Side]]:
    """Warm up, note the truth, then measure all sides in turn, each from the same place."""
    stream = token_stream(PROMPT + WARM_UP + n_tokens, engine.tokenizer.n_vocab)
    used = max(m.n_experts_used for m in engine.catalog.layers)
    guesser, truth = NextLayer(engine, threads), Truth(engine)
    engine.decode(stream[:PROMPT])
    measure(engine, stream[PROMPT : PROMPT + WARM_UP], guesser.watch)
    start = engine.position
    measured = stream[start:]
    measure(engine, measured, truth.note)

    def guess(count: int) -> Watch:
        guesser.count = count
        return guesser.watch

    sides: dict[str, Callable[[], Watch | None]] = {
        "off": lambda: None,
        "guess, not acted on": lambda: guess(0),
        f"guess, {used // 2} surest": lambda: guess(used // 2),
        f"guess, {used} surest": lambda: guess(used),
        **{f"truth {s:.0%}": (lambda s=s: truth.replay(s)) for s in (1.0, 0.9, 0.8, 0.6)},
    }
    rounds: dict[str, list[Side]] = {name: [] for name in sides}
    for _ in range(n_rounds):
        for name, make in sides.items():
            engine.truncate(start)
            measure(engine, stream[:BETWEEN], None)  # so that the cache does not know the way
            engine.truncate(start)
            rounds[name].append(measure(engine, measured, make()))
            print(name, round(rounds[name][-1]["tokens_per_second"], 2), flush=True)
    guesser.close()
    return rounds


def main() -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--memory-mib", type=int, default=3072)
    parser.add_argument("--tokens", type=int, default=48)
    given = parser.parse_args()
    model = given.model or synthetic_model(SCRATCH / "synthetic.gguf", Shape())
    entry = entry_state()
    settings = Settings(memory_bytes=given.memory_mib << 20, context_tokens=1024)
    with load(model, settings) as engine:
        rounds = run(engine, given.tokens, given.rounds, settings.n_threads)
    medians = {
        side: statistics.median(r["tokens_per_second"] for r in found)
        for side, found in rounds.items()
    }
    result = {
        "verdict": {side: speed / medians["off"] for side, speed in medians.items()},
        "memory_mib": given.memory_mib,
        "tokens": given.tokens,
        "rounds": rounds,
    }
    record(given.data, "prediction", entry, result)
    print({side: round(ratio, 3) for side, ratio in result["verdict"].items()})


if __name__ == "__main__":
    main()
