"""Claim: reading ahead what the next layer's router is expected to choose does not pay here.

    python benchmarks/prediction.py [--model FILE.gguf] [--memory-mib 3072]

One model, loaded once. A long stretch of tokens is decoded twice: once to note what is routed, then
in blocks, without reading ahead, with guesses of the next layer's router, and with the truth, of
which a share is replaced by experts drawn at random. So the record also says which share of the
guesses would have to be true if they cost nothing. Sides alternate, no block is measured twice.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
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
PROMPT, WARM_UP = 32, 64
SETTLING = 2  # tokens after a change of sides that do not count
PROTECT_LAYERS = 2


class Truth:
    """Notes what was routed, and tells it later with so many errors."""

    def __init__(self, engine: LlamaEngine) -> None:
        self._engine, self._noted = engine, list[tuple[int, list[int]]]()
        self._experts = {m.layer: m.n_experts for m in engine.catalog.layers}
        self._at, self._share, self._random = 0, 1.0, random.Random(0)

    def note(self, _node: int, layer: int, experts: Sequence[int]) -> None:
        self._noted.append((layer, list(experts)))

    def replay(self, share: float, token: int) -> Watch:
        """Return a watch that reads ahead from this token on; `share` of what it names is true."""
        self._at, self._share = token * len(self._experts), share
        return self._tell

    def _tell(self, _node: int, layer: int, _experts: Sequence[int]) -> None:
        self._at += 1
        if layer == max(self._experts):
            return  # what the next token needs nobody can know
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


def decode(engine: LlamaEngine, tokens: Sequence[int], watch: Watch | None) -> list[float]:
    """Decode token by token; return the seconds of each."""
    engine.watch_routing(watch)
    seconds = []
    for token in tokens:
        began = time.perf_counter()
        engine.decode([token])
        seconds.append(time.perf_counter() - began)
    engine.watch_routing(None)
    return seconds


def measure(engine: LlamaEngine, tokens: Sequence[int], watch: Watch | None) -> Side:
    """Decode a block; return what it took."""
    cache = engine.cache
    assert cache is not None
    before, ahead, count = engine.stats(), cache.stats(), len(tokens)
    seconds = decode(engine, tokens, watch)
    spent = engine.stats() - before
    return {
        "token_seconds": seconds[SETTLING:],
        "hit_rate": spent.hit_rate,
        "read_bytes_per_token": spent.read_bytes / count,
        "stall_seconds_per_token": spent.stall_seconds / count,
        "read_ahead_per_token": (cache.stats().prefetched - ahead.prefetched) / count,
    }


def run(engine: LlamaEngine, n_tokens: int, n_rounds: int, threads: int) -> dict[str, list[Side]]:
    """Warm up, note the truth of all blocks, then go through them with all sides in turn."""
    used = max(m.n_experts_used for m in engine.catalog.layers)
    guesser, truth = NextLayer(engine, threads), Truth(engine)

    def guess(count: int) -> Watch:
        guesser.count = count
        return guesser.watch

    sides: dict[str, Callable[[int], Watch | None]] = {
        "off": lambda _: None,
        "guess, not acted on": lambda _: guess(0),
        f"guess, {used // 2} surest": lambda _: guess(used // 2),
        f"guess, {used} surest": lambda _: guess(used),
        **{f"truth {s:.0%}": partial(truth.replay, s) for s in (1.0, 0.9, 0.8, 0.6)},
    }
    n_measured = n_tokens * n_rounds * len(sides)
    stream = token_stream(PROMPT + WARM_UP + n_measured, engine.tokenizer.n_vocab)
    engine.decode(stream[:PROMPT])
    decode(engine, stream[PROMPT : PROMPT + WARM_UP], guess(0))
    start, tokens = engine.position, stream[PROMPT + WARM_UP :]
    decode(engine, tokens, truth.note)
    engine.truncate(start)
    rounds: dict[str, list[Side]] = {name: [] for name in sides}
    for _ in range(n_rounds):
        for name, make in sides.items():
            at = engine.position - start
            found = measure(engine, tokens[at : at + n_tokens], make(at))
            rounds[name].append(found)
            print(name, f"{1e3 * statistics.median(found['token_seconds']):.1f} ms", flush=True)
    guesser.close()
    return rounds


def main() -> None:
    parser = options(__doc__, rounds=4)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--memory-mib", type=int, default=3072)
    parser.add_argument("--tokens", type=int, default=20)
    given = parser.parse_args()
    model = given.model or synthetic_model(SCRATCH / "synthetic.gguf", Shape())
    entry = entry_state()
    settings = Settings(memory_bytes=given.memory_mib << 20, context_tokens=1024)
    with load(model, settings) as engine:
        rounds = run(engine, given.tokens, given.rounds, settings.n_threads)
    medians = {
        side: statistics.median(second for r in found for second in r["token_seconds"])
        for side, found in rounds.items()
    }
    result = {
        "verdict": {side: medians["off"] / seconds for side, seconds in medians.items()},
        "memory_mib": given.memory_mib,
        "tokens": given.tokens,
        "rounds": rounds,
    }
    record(given.data, "prediction", entry, result)
    print({side: round(ratio, 3) for side, ratio in result["verdict"].items()})


if __name__ == "__main__":
    main()
