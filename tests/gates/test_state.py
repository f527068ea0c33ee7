"""State: what was taken back or restored leaves no trace in the logits.

G6  truncate, save and restore give the bits of an engine that never rewound
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import localmoe
import zoo
from localmoe.backends.llama import parameters
from localmoe.backends.llama.engine import LlamaEngine
from localmoe.errors import ExpertReadError

ZooModel = Callable[[str], Path]
FloatArray = npt.NDArray[np.float32]

REWINDING = ("qwen3moe", "mixtral", "deepseek2", "glm-dsa", "minimax-m3", "qwen3")
"""Grouped queries, latent attention, caches for an indexer; a dense model."""
WINDOWED = ("afmoe", "gpt-oss", "exaone-moe", "llama4-maverick", "gemma3")
SHORT_WINDOWS = ("afmoe", "gpt-oss", "exaone-moe", "gemma3")
"""Windows of 8 tokens."""
RECURRENT = (
    "qwen3next",
    "qwen35moe",
    "lfm2moe",
    "kimi-linear",
    "granitehybrid",
    "jamba",
    "minimax-01",
    "nemotron_h_moe",
    "deepseek4",
    "mamba",
)
"""DeepSeek-V4 is none, but compresses what it has read: it can go back no more than they can."""
ALL = (*REWINDING, *WINDOWED, *RECURRENT)

PREFIX, AFTER = (12, 20), (1, 17, 1)
"""Lengths of the calls before and after the place that is rewound to."""
TOKENS = [int(t) for t in np.random.default_rng(5).integers(0, 256, 700)]
OTHERS = [int(t) for t in np.random.default_rng(6).integers(0, 256, 700)]
CHUNK, CONTEXT = 16, 128


def load(path: Path, slots: int | None = None, context: int = CONTEXT) -> LlamaEngine:
    settings = localmoe.Settings(
        threads=1, context_tokens=context, prefill_chunk_tokens=CHUNK, slots=slots
    )
    engine = localmoe.load(path, settings)
    assert isinstance(engine, LlamaEngine)
    return engine


def some_slots(name: str, path: Path) -> int | None:
    """Return slots for half of the experts; None for a dense model."""
    if name in zoo.DENSE:
        return None
    with load(path) as engine:
        return engine.plan.experts // 2


def decode(engine: LlamaEngine, start: int, lengths: Sequence[int]) -> list[bytes]:
    """Decode calls of these lengths from the stream; return the logits of each."""
    rows = []
    for length in lengths:
        assert engine.position == start
        rows.append(engine.decode(TOKENS[start : start + length]).tobytes())
        start += length
    return rows


def never_rewound(engine: LlamaEngine) -> list[bytes]:
    """Return what comes after the prefix in an engine that is new."""
    decode(engine, 0, PREFIX)
    return decode(engine, sum(PREFIX), AFTER)


def after_rewinding(engine: LlamaEngine, position: int) -> list[bytes]:
    """Return what comes after the prefix, which is decoded again if it is gone."""
    assert engine.position == position
    if position == 0:
        decode(engine, 0, PREFIX)
    return decode(engine, sum(PREFIX), AFTER)


@pytest.mark.parametrize("name", ALL)
def test_g6_what_was_truncated_leaves_no_trace(name: str, zoo_model: ZooModel) -> None:
    path = zoo_model(name)
    slots = some_slots(name, path)
    with load(path, slots) as engine:
        wanted = never_rewound(engine)
    with load(path, slots) as engine:
        assert engine.can_rewind == (name not in RECURRENT)
        end = sum(PREFIX)
        for extra in ((1,), (3, 40)):
            assert engine.truncate(0) == 0
            decode(engine, 0, PREFIX)
            for length in extra:
                engine.decode(OTHERS[:length])
            kept = engine.truncate(end)
            assert kept == (end if engine.can_rewind else 0)
            assert after_rewinding(engine, kept) == wanted
        assert engine.truncate(engine.position + 5) == end + sum(AFTER), "nothing to take back"


@pytest.mark.parametrize("name", ALL)
def test_g6_a_saved_state_comes_back_here_and_in_a_fresh_engine(
    name: str, zoo_model: ZooModel, tmp_path: Path
) -> None:
    path, state = zoo_model(name), tmp_path / "state"
    slots, end = some_slots(name, path), sum(PREFIX)
    with load(path, slots) as engine:
        decode(engine, 0, PREFIX)
        engine.save(state)
        wanted = decode(engine, end, AFTER)
        engine.decode(OTHERS[:30])
        engine.restore(state)
        assert after_rewinding(engine, end) == wanted
    with load(path, None) as resident:
        resident.decode(OTHERS[:5])
        resident.restore(state)
        assert after_rewinding(resident, end) == wanted
    if slots:
        with load(path, slots * 3 // 4) as other:
            other.restore(state)
            assert after_rewinding(other, end) == wanted


@pytest.mark.usefixtures("reads_by_workers")
@pytest.mark.parametrize("name", [name for name in ALL if name not in zoo.DENSE])
def test_g6_a_decode_that_failed_leaves_no_trace(name: str, zoo_model: ZooModel) -> None:
    path = zoo_model(name)
    slots = some_slots(name, path)
    with load(path, slots) as engine:
        wanted = never_rewound(engine)
    with load(path, slots) as engine:
        decode(engine, 0, PREFIX)
        break_reads(engine, after=3)
        with pytest.raises(ExpertReadError):
            engine.decode(OTHERS[:60])
        break_reads(engine, after=None)
        assert engine.position == (sum(PREFIX) if engine.can_rewind else 0)
        assert after_rewinding(engine, engine.position) == wanted


@pytest.mark.parametrize("name", RECURRENT)
def test_g6_marks_are_what_a_recurrent_model_goes_back_to(
    name: str, zoo_model: ZooModel, tmp_path: Path
) -> None:
    path = zoo_model(name)
    with load(path, some_slots(name, path)) as engine:
        wanted = never_rewound(engine)
        engine.truncate(0)
        decode(engine, 0, PREFIX[:1])
        engine.mark()
        decode(engine, PREFIX[0], PREFIX[1:])
        engine.mark()
        first, end = (PREFIX[0], sum(PREFIX)) if name != "deepseek4" else (0, 0)
        for extra, back in ((1, 0), (40, 0), (9, 8)):
            engine.decode(OTHERS[:extra])
            kept = engine.truncate(sum(PREFIX) + back)
            assert kept == end
            assert after_rewinding(engine, kept) == wanted
        assert engine.truncate(sum(PREFIX) - 1) == first
        for position in (1, 3):
            engine.decode(OTHERS[:20])
            assert engine.truncate(position) == 0, "there is no mark of this text any more"


def test_g6_the_last_two_marks_are_kept_and_planned(zoo_model: ZooModel, tmp_path: Path) -> None:
    with load(zoo_model("qwen3next")) as engine:
        assert 0 < engine.plan.mark_bytes < 2 * (engine.plan.kv_bytes + (64 << 10))
        for length in (5, 6, 7):
            engine.decode(TOKENS[:length])
            engine.mark()
        engine.save(tmp_path / "state")
        assert [mark.position for mark in engine._marks._marks] == [11, 18]
        assert sum(len(mark.state) for mark in engine._marks._marks) <= engine.plan.mark_bytes
        engine.decode(OTHERS[:5])
        assert engine.truncate(17) == 11
        engine.restore(tmp_path / "state")
        assert engine.position == 18
        assert engine.truncate(12) == 0, "marks of another text"


def break_reads(engine: LlamaEngine, after: int | None) -> None:
    """Let reads of experts fail after so many; None: no longer."""
    left = [after]

    def preadv(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if left[0] is not None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.EIO, "input/output error")
        return os.preadv(fd, buffers, offset)

    for file in engine._source.files.values():
        file._preadv = preadv


@pytest.mark.parametrize("name", SHORT_WINDOWS)
def test_g6_windows_are_rewound_beyond_what_they_see(name: str, tmp_path: Path) -> None:
    path, end = zoo.write(tmp_path, name, context=1024), sum(PREFIX)
    with load(path, context=640) as engine:
        wanted = never_rewound(engine)
        for extra in (2, 7, 8, 9, 300):
            assert engine.truncate(0) == 0
            decode(engine, 0, PREFIX)
            engine.decode(OTHERS[:extra])
            assert engine.truncate(end) == end
            assert after_rewinding(engine, end) == wanted


@pytest.mark.parametrize("name", SHORT_WINDOWS)
def test_g6_restored_windows_are_whole(name: str, tmp_path: Path) -> None:
    """With all that they have read, each at its place: attention adds up in blocks of places."""
    path, state = zoo.write(tmp_path, name, context=1024), tmp_path / "state"
    more = (*[1] * 70, 48)
    with load(path, context=640) as engine:
        engine.decode(TOKENS[:200], "none")
        engine.save(state)
        wanted = decode(engine, 200, more)
        engine.restore(state)
        assert decode(engine, 200, more) == wanted
        engine.restore(state)
        assert engine.truncate(20) == 20
        rewound = decode(engine, 20, (180,))
    with load(path, context=640) as fresh:
        fresh.decode(TOKENS[:200], "none")
        assert fresh.truncate(20) == 20
        assert decode(fresh, 20, (180,)) == rewound
        fresh.restore(state)
        assert decode(fresh, 200, more) == wanted
    assert [file.name for file in tmp_path.iterdir() if "state" in file.name] == ["state"]


@pytest.mark.parametrize("name", SHORT_WINDOWS)
def test_g6_windows_that_forget_never_lie(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window that keeps what it sees has 256 places: until they are full nothing is forgotten."""
    monkeypatch.setattr(parameters, "WHOLE_WINDOWS", False)
    path, end = zoo.write(tmp_path, name, context=1024), sum(PREFIX)
    with load(path, context=640) as engine:
        wanted = never_rewound(engine)
        kept = {}
        for extra in (1, 100, 224, 225, 231, 300):
            assert engine.truncate(0) == 0
            decode(engine, 0, PREFIX)
            engine.decode(OTHERS[:extra])
            kept[extra] = engine.truncate(end)
            assert after_rewinding(engine, kept[extra]) == wanted
    assert list(kept.values()) == [end, end, end, 0, 0, 0]
