"""Steps that touch more experts than there are slots: computed in passes, to the same bits.

    G5  any number of slots gives what resident experts give, at the same length of chunks

G1 holds this for every model of the zoo at its smallest cache; here are the sizes in between, long
chunks (kernels change with the number of rows of an expert), failures and interruptions.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import localmoe
from localmoe.backends.base import Stats
from localmoe.backends.llama.engine import LlamaEngine
from localmoe.backends.llama.passes import Passes
from localmoe.cache.direct_file import DirectFile
from localmoe.cache.slots import slot_classes
from localmoe.errors import ExpertReadError, InterruptedDecodeError

ZooModel = Callable[[str], Path]
CHUNK = 96
TOKENS = [int(t) for t in np.random.default_rng(7).integers(0, 256, 2 * CHUNK + 5)]
NAMES = ("qwen3moe", "qwen3moe-mixed", "qwen3moe-scaled", "deepseek2-fused", "gpt-oss")


def load(path: Path, slots: int | None = None, threads: int = 2) -> LlamaEngine:
    settings = localmoe.Settings(
        slots=slots, threads=threads, prefill_chunk_tokens=CHUNK, context_tokens=256
    )
    engine = localmoe.load(path, settings)
    assert isinstance(engine, LlamaEngine)
    return engine


def logits_of(engine: LlamaEngine) -> npt.NDArray[np.float32]:
    engine.truncate(0)
    return engine.decode(TOKENS, "all")


@cache
def resident_logits(path: Path, threads: int) -> npt.NDArray[np.float32]:
    with load(path, None, threads) as engine:
        assert not engine.plan.streams
        return logits_of(engine)


def same(found: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> bool:
    return found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_g5_any_number_of_slots_gives_the_same_bits(
    name: str, share: float, zoo_model: ZooModel
) -> None:
    path = zoo_model(name)
    with load(path) as whole:
        classes = slot_classes(whole.catalog.layers, 1)
    least = sum(max(layer.n_experts_used for layer in c.layers) for c in classes)
    widest = sum(c.widest_demand for c in classes)
    slots = max(least, int(widest * share))
    threads = 1 + int(share * 10) % 2
    with load(path, slots, threads) as engine:
        assert engine.plan.prefill_chunk_tokens == CHUNK
        assert same(logits_of(engine), resident_logits(path, threads))
        assert same(logits_of(engine), resident_logits(path, threads)), "with a warm cache"
        stats = engine.stats()
    assert stats.split_layers > 0
    assert stats.split_seconds > 0


def test_a_split_reads_each_expert_once_per_layer_and_chunk(zoo_model: ZooModel) -> None:
    with load(zoo_model("qwen3moe"), 2) as engine:
        logits_of(engine)
        stats = engine.stats()
        layers, per_expert = len(engine.catalog.layers), engine.catalog.layers[0].expert_nbytes
    # Every chunk is long enough to touch all 16 experts; the last layer may have fewer rows.
    chunks = -(-len(TOKENS) // CHUNK)
    assert stats.split_layers >= (chunks - 1) * layers
    assert stats.hits + stats.misses <= chunks * layers * 16
    assert stats.read_bytes == stats.misses * per_expert


def test_nothing_is_split_when_there_are_slots_enough(zoo_model: ZooModel) -> None:
    with load(zoo_model("qwen3moe"), 16) as engine:
        logits_of(engine)
        assert engine.stats().split_layers == 0
        assert engine.stats() - engine.stats() == Stats()


@pytest.mark.parametrize("at_read", [0, 7, 40, 90])
def test_a_read_that_fails_in_a_pass_ends_the_decode_and_nothing_else(
    at_read: int, zoo_model: ZooModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zoo_model("gpt-oss")
    with load(path, 6) as engine:
        engine.decode(TOKENS[:10], "none")
        reads = 0
        real = DirectFile.read

        def read(file: DirectFile, *arguments: object) -> None:
            nonlocal reads
            reads += 1
            if reads > at_read:
                raise ExpertReadError("disk", 0, 1, OSError(errno.EIO, os.strerror(errno.EIO)))
            real(file, *arguments)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(DirectFile, "read", read)
            with pytest.raises(ExpertReadError, match="Input/output error"):
                engine.decode(TOKENS[10 : 10 + CHUNK], "none")
        assert engine.position == 10
        assert same(logits_of(engine), resident_logits(path, 2))


@pytest.mark.usefixtures("python_handler")
@pytest.mark.parametrize("name", ["gpt-oss", "qwen3next"])
def test_ctrl_c_in_a_pass_ends_the_decode_at_the_next_group(
    name: str, zoo_model: ZooModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zoo_model(name)
    with load(path, 12) as engine:
        engine.decode(TOKENS[:10], "none")
        engine.mark()
        compute, calls = Passes._compute, 0

        def pressing(*arguments: Any) -> None:
            nonlocal calls
            calls += 1
            signal.raise_signal(signal.SIGINT)
            compute(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Passes, "_compute", pressing)
            with pytest.raises(KeyboardInterrupt):
                engine.decode(TOKENS[10 : 10 + CHUNK], "none")
        assert calls == 1
        assert engine.position == 10, "where it was, by a mark if need be"
        assert same(logits_of(engine), resident_logits(path, 2))


def test_an_interrupt_is_heard_between_passes(
    zoo_model: ZooModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zoo_model("deepseek2-fused")
    with load(path, 4) as engine:
        engine.decode(TOKENS[:10], "none")
        sweeping = engine.cache.sweep if engine.cache else None

        def sweep(*arguments: object) -> object:
            engine.interrupt()
            assert sweeping
            return sweeping(*arguments)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(engine.cache, "sweep", sweep)
            with pytest.raises(InterruptedDecodeError):
                engine.decode(TOKENS[10 : 10 + CHUNK], "none")
        assert engine.position == 10
        assert same(logits_of(engine), resident_logits(path, 2))
