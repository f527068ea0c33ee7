"""The picture's data: what a watcher is told, and that nobody is told for nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import localmoe
from localmoe.backends.base import WatchedEngine
from localmoe.server import live
from localmoe.weights.catalog import ExpertKey
from server_tools import Serve, until
from serving import USER, Served

Frame = dict[str, Any]
MODEL = "qwen3moe"


@pytest.fixture
def load(zoo_model: Callable[[str], Path]) -> Iterator[Callable[..., Any]]:
    engines = []

    def open_model(**settings: Any) -> Any:
        wanted = localmoe.Settings(context_tokens=256, threads=1, **settings)
        engines.append(localmoe.load(zoo_model(MODEL), wanted))
        return engines[-1]

    yield open_model
    for engine in engines:
        engine.close()


def cells(text: str) -> set[int]:
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


@pytest.mark.parametrize("compiled", [True, False])
def test_every_request_is_told_with_and_without_compiled_code(
    load: Callable[..., Any], compiled: bool
) -> None:
    engine = load(slots=9, compiled=compiled)
    assert isinstance(engine, WatchedEngine)
    told: dict[str, list[ExpertKey]] = {"hit": [], "miss": [], "ahead": []}
    held = engine.watch_experts(lambda kind, keys: told[kind].extend(keys))
    assert held is not None
    layers = {layer.layer: layer for layer in engine.catalog.layers}
    engine.decode([1, 2, 3, 4, 5])
    for token in range(12):
        before = engine.stats()
        for keys in told.values():
            keys.clear()
        engine.decode([token])
        spent = engine.stats() - before
        assert len(told["hit"]) == spent.hits
        assert len(told["miss"]) == spent.misses
        asked = told["hit"] + told["miss"]
        assert len(set(asked)) == len(asked) == sum(m.n_experts_used for m in layers.values())
        assert all(0 <= key.expert < layers[key.layer].n_experts for key in asked)
        assert 0 < len(held) <= 9
    last = max(layers)
    assert {key for key in asked if key.layer == last} <= set(held)
    engine.watch_experts(None)
    count = len(asked)
    engine.decode([7])
    engine.stats()
    assert len(told["hit"]) + len(told["miss"]) == count


def test_where_all_experts_are_in_memory_nothing_is_told(load: Callable[..., Any]) -> None:
    engine = load()
    assert engine.watch_experts(lambda kind, keys: pytest.fail("told")) is None
    engine.decode([1])


@pytest.fixture
def every_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every frame sent, however fast they come: a fast machine must not see fewer."""
    monkeypatch.setattr(live, "_FRAME_SECONDS", 0.0)
    monkeypatch.setattr(live, "_WAITING_FRAMES", 10_000)


def frames_of(served: Served) -> list[Frame]:
    """Return the frames of one answer: what is there before it, all of it, and the end."""
    frames: list[Frame] = []
    body = {"model": "tiny", "messages": USER, "max_tokens": 40, "temperature": 0}
    with httpx.stream("GET", f"{served.url}/live", timeout=30) as stream:
        lines = (line for line in stream.iter_lines() if line.startswith("data: "))
        for line in lines:
            frames.append(json.loads(line[6:]))
            if len(frames) == 2:
                httpx.post(f"{served.api}/chat/completions", json=body, timeout=30)
            elif len(frames) > 2 and frames[-1]["phase"] == "idle":
                return frames
    raise AssertionError("the stream has ended")


def test_a_watcher_sees_the_model_and_then_every_token(
    serve: Serve, load: Callable[..., Any], every_frame: None
) -> None:
    engine = load(slots=9)
    served = serve(engine)
    hello, first, *rest = frames_of(served)
    layers = engine.catalog.layers
    assert hello["type"] == "hello"
    assert (hello["model"], hello["architecture"]) == ("tiny", MODEL)
    assert hello["layers"] == [layer.layer for layer in layers]
    assert hello["experts"] == layers[0].n_experts
    assert hello["budget_bytes"] == engine.plan.budget_bytes
    assert sum(hello["memory"].values()) == engine.plan.total_bytes
    assert (first["type"], first["phase"]) == ("frame", "idle")
    assert first["held_experts"] == len(cells(first["held"]))
    phases = [frame["phase"] for frame in rest]
    assert {"prompt", "answer"} <= set(phases)
    assert phases[-1] == "idle"
    asked: set[int] = set()
    for frame in rest:
        asked |= cells(frame["hit"]) | cells(frame["miss"])
        assert len(cells(frame["held"])) == frame["held_experts"] <= 9
    assert asked
    assert max(asked) < len(layers) * hello["experts"]
    spoken = [frame for frame in rest if frame["tokens_per_second"]]
    assert all(0 <= frame["hit_rate"] <= 1 for frame in spoken)
    assert all(0 <= frame["stall"] <= 1 for frame in spoken)
    assert rest[-1]["position"] == engine.position


@pytest.mark.parametrize(
    ("drive_rate", "expected"),
    [
        (None, lambda frame: None),  # what the drive allows is not known
        (1e30, lambda frame: pytest.approx(1 - frame["stall"])),  # reading takes no time
        (1.0, lambda frame: 1.0),  # nothing could be faster than this drive
    ],
)
def test_the_fraction_of_the_limit(
    serve: Serve,
    load: Callable[..., Any],
    every_frame: None,
    drive_rate: float | None,
    expected: Callable[[Frame], Any],
) -> None:
    frames = frames_of(serve(load(slots=9), drive_rate=drive_rate))[2:]
    reading = [frame for frame in frames if frame["read_bytes"]]
    assert reading
    assert all(frame["fraction_of_limit"] == expected(frame) for frame in reading)


def test_nobody_is_told_once_the_last_watcher_has_gone(
    serve: Serve, load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(slots=9)
    watches: list[bool] = []
    watch = engine.watch_experts
    monkeypatch.setattr(
        engine, "watch_experts", lambda w: watches.append(w is not None) or watch(w)
    )
    served = serve(engine)
    body = {"model": "tiny", "messages": USER, "max_tokens": 3}
    httpx.post(f"{served.api}/chat/completions", json=body, timeout=30)
    assert watches == []
    frames_of(served)
    until(lambda: not served.service.live.watchers)
    httpx.post(f"{served.api}/chat/completions", json=body, timeout=30)
    until(lambda: not served.service.worker.is_busy)
    assert watches == [True, False]


def test_an_engine_without_a_cache_has_frames_all_the_same(serve: Serve) -> None:
    hello, *rest = frames_of(serve(["an answer"]))
    assert hello["layers"] == []
    assert rest[-1]["held"] is None
    assert rest[-1]["hit"] == ""


def test_too_many_watchers_are_sent_away(serve: Serve) -> None:
    served = serve([])
    with httpx.Client(limits=httpx.Limits(max_connections=None), timeout=30) as client:
        streams = [client.send(client.build_request("GET", f"{served.url}/live"), stream=True)
                   for _ in range(16)]  # fmt: skip
        until(lambda: served.service.live.watchers == 16)
        assert client.get(f"{served.url}/live").status_code == 429
        for stream in streams:
            stream.close()
    until(lambda: served.service.live.watchers == 0)
