"""Types of the KV cache: what rounding they bring, streaming adds nothing to it.

G8  for each type, streamed equals resident, to the last bit
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest

import localmoe
import zoo
from localmoe.backends.llama.dry_run import dry_run
from localmoe.errors import EngineError, SettingsError
from localmoe.settings import KvType

ZooModel = Callable[[str], Path]
FloatArray = npt.NDArray[np.float32]
TYPES: tuple[KvType, ...] = get_args(KvType)
BYTES_PER_NUMBER = {"f16": 2, "q8_0": 34 / 32, "q4_0": 18 / 32}
MODELS = (
    "qwen3moe",
    "deepseek2",
    "glm-dsa",
    "afmoe",
    "gpt-oss",
    "deepseek4",
    "qwen35moe",
)
"""Grouped queries, latent attention, with an indexer; windows, with sinks; recurrent layers."""
PREFILL, DECODE = (5, 24), 4
TOKENS = [int(t) for t in np.random.default_rng(3).integers(0, 256, sum(PREFILL) + DECODE)]


def load(path: Path, kv_type: KvType, slots: int | None = None) -> localmoe.Engine:
    return localmoe.load(
        path,
        localmoe.Settings(
            threads=1, context_tokens=64, prefill_chunk_tokens=16, slots=slots, kv_type=kv_type
        ),
    )


def run(engine: localmoe.Engine) -> FloatArray:
    rows, start = [], 0
    for length in (*PREFILL, *[1] * DECODE):
        rows.append(engine.decode(TOKENS[start : start + length], "all"))
        start += length
    return np.concatenate(rows)


@cache
def resident(path: Path, kv_type: KvType) -> tuple[FloatArray, int]:
    """Return the logits with all experts in memory, and how many slots make it stream."""
    with load(path, kv_type) as engine:
        assert not engine.plan.streams
        assert engine.plan.kv_type == kv_type
        return run(engine), engine.plan.experts // 2


@pytest.mark.parametrize("kv_type", TYPES)
@pytest.mark.parametrize("name", MODELS)
def test_g8_streamed_equals_resident(name: str, kv_type: KvType, zoo_model: ZooModel) -> None:
    path = zoo_model(name)
    wanted, slots = resident(path, kv_type)
    with load(path, kv_type, slots) as engine:
        assert engine.plan.streams
        found = run(engine)
        assert engine.stats().misses > 0
    assert np.isfinite(wanted).all()
    assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", MODELS)
def test_smaller_types_round_more(name: str, zoo_model: ZooModel) -> None:
    exact, coarse, coarser = (resident(zoo_model(name), kv_type)[0] for kv_type in TYPES)
    error, larger = (float(np.abs(other - exact).mean()) for other in (coarse, coarser))
    assert 0 < 2 * error < larger < float(np.abs(exact).mean())


@pytest.mark.parametrize("name", ["qwen3moe", "deepseek2", "gpt-oss", "qwen35moe"])
def test_the_planner_counts_them(name: str, tmp_path: Path) -> None:
    path = zoo.write(tmp_path, name, context=1 << 15)
    found = {
        kv_type: dry_run([str(path)], context_tokens=1 << 15, chunks=[16], kv_type=kv_type)
        for kv_type in TYPES
    }
    kv_bytes = {kv_type: run.footprints[0].kv_bytes for kv_type, run in found.items()}
    # Recurrent states keep their type, but at this length they hardly count.
    for kv_type in TYPES:
        ratio = BYTES_PER_NUMBER[kv_type] / BYTES_PER_NUMBER["f16"]
        assert kv_bytes[kv_type] / kv_bytes["f16"] == pytest.approx(ratio, rel=0.03)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("qwen3moe", {"head_size": 16}, "does not divide"),
        ("grok", {}, "flash_attn"),
    ],
)
def test_what_llama_cannot_do_is_one_clear_error(
    name: str, changes: dict[str, int], reason: str, tmp_path: Path
) -> None:
    path = zoo.write(tmp_path, name, **changes)
    with pytest.raises(SettingsError, match=f"kv_type q8_0 was wanted.*{reason}.*--kv-type f16"):
        load(path, "q8_0")
    load(path, "f16").close()


def test_a_state_of_another_type_is_refused(zoo_model: ZooModel, tmp_path: Path) -> None:
    path, state = zoo_model("qwen3moe"), tmp_path / "state"
    with load(path, "q8_0") as engine:
        engine.decode(TOKENS[:8])
        engine.save(state)
        wanted = engine.decode(TOKENS[8:9])
    with load(path, "f16") as other:
        other.decode(TOKENS[:3])
        with pytest.raises(EngineError, match=r"type q8_0, and this one is f16.*--kv-type q8_0"):
            other.restore(state)
        assert other.position == 3
    with load(path, "q8_0") as again:
        again.restore(state)
        assert again.decode(TOKENS[8:9]).tobytes() == wanted.tobytes()


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(SettingsError, match="kv_type must be one of f16, q8_0, q4_0"):
        localmoe.Settings(kv_type="q5_1")  # type: ignore[arg-type]
