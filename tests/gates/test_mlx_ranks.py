"""G20: a model over two ranks = the model in one process, to the last bit of every logit."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import psutil
import pytest

import zoo_mlx
from localmoe.backends.mlx.load import load
from localmoe.backends.mlx.ranked_engine import RankedEngine, open_ranked
from localmoe.cli.hosts import ranks_for
from localmoe.errors import (
    BudgetError,
    EngineError,
    ExpertReadError,
    InterruptedDecodeError,
    LostRankError,
    UnsupportedModelError,
)
from localmoe.settings import Ranks, Settings
from zoo_torch.tokenizer import write_tokenizer

pytestmark = pytest.mark.slow

PROMPT = [(31 * place + 3) % 250 for place in range(40)]
N_DECODED = 4
SLOTS = 6  # for 8 experts of each of two layers
TYPES = (
    *("deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v41", "glm4_moe"),
    *("glm4_moe_lite", "kimi_k25", "kimi_k3", "minimax_m3_vl", "mistral4", "qwen3_5_moe"),
    *("qwen3_moe", "qwen3_next"),
)
GROWING, RECURRENT = "deepseek_v3", "qwen3_next"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Start a second rank for this process, by what `--hosts` does."""
    hosts = tmp_path_factory.mktemp("hosts") / "hosts.json"
    hosts.write_text(json.dumps([{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}] * 2))
    mx.disable_compile()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_DISABLE_COMPILE", "1")
        with ranks_for(hosts) as found:
            assert found
            yield found
    mx.enable_compile()


class Zoo:
    """One engine over two ranks, which loads one checkpoint after the other."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self._folder, self._ranks = folder, ranks
        self.engine: RankedEngine | None = None

    def write(self, name: str, *, halved: bool = False) -> tuple[Path, ...]:
        """Return the folder of a checkpoint, and its two files: rank 1's layers, and the rest."""
        folder = self._folder / f"{name}{halved}"
        if not folder.exists():
            folder.mkdir()
            zoo_mlx.write(folder, name, "affine", n_layers=4)
            write_tokenizer(folder)
            if halved:
                zoo_mlx.in_two_files(folder, lambda one: ".0." in one or "layers.1." in one)
        return folder, *sorted(folder.glob("*-of-*"))

    def load(self, folder: Path, **more: int | None) -> RankedEngine:
        """Load a checkpoint into the engine."""
        values = {"slots": SLOTS, "context_tokens": 128, **more}
        settings = Settings(ranks=self._ranks, **values)
        if self.engine is None:
            self.engine = open_ranked(folder, settings)
        else:
            self.engine.load(folder, settings, None)
        return self.engine


@pytest.fixture(scope="module")
def zoo(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    """Return what loads checkpoints."""
    found = Zoo(tmp_path_factory.mktemp("ranks"), ranks)
    yield found
    if found.engine:
        found.engine.close()


def answer(engine: RankedEngine, tokens: list[int]) -> np.ndarray:
    """Return all logits of a prompt, then of the likeliest tokens."""
    found = [engine.decode(tokens, "all")]
    for _ in range(N_DECODED):
        found.append(engine.decode([int(found[-1][-1].argmax())]))
    return np.concatenate(found)


def decode_again(engine: RankedEngine, tokens: list[int], start: int) -> None:
    """Decode the same tokens for half a minute, or until something is raised."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        engine.decode(tokens)
        engine.truncate(start)


@pytest.mark.parametrize("name", TYPES)
def test_g20_two_ranks_equal_one(zoo: Zoo, name: str, tmp_path: Path) -> None:
    folder, *_ = zoo.write(name)
    engine, model = zoo.load(folder), zoo_mlx.stock(folder)
    plain = zoo_mlx.plain_logits(model, [PROMPT], N_DECODED)
    assert np.array_equal(answer(engine, PROMPT), plain)
    assert plain.std() > 0.1
    for stats in engine.rank_stats():
        assert stats.misses > SLOTS
    engine.save(tmp_path / "state")
    assert engine.truncate(0) == 0
    following = engine.decode([7, 9])
    engine.restore(tmp_path / "state")
    assert engine.position == 40 + N_DECODED
    if engine.can_rewind:
        assert engine.truncate(40) == 40
        again = [engine.decode([int(plain[40 - 1 + n].argmax())]) for n in range(N_DECODED)]
        assert np.array_equal(np.concatenate(again), plain[40:])
    assert engine.truncate(0) == 0
    assert np.array_equal(engine.decode([7, 9]), following)


def test_each_rank_has_some_of_the_layers_and_reads_no_others(zoo: Zoo) -> None:
    """The bytes of the layers of one rank are taken away: then the other one still has all."""
    folder, first, second = zoo.write(GROWING, halved=True)
    engine = zoo.load(folder)
    assert engine.layers == (range(2, 4), range(2))
    assert [layer.layer for layer in engine.catalog.layers] == [2, 3]
    with load(folder, Settings(slots=12, context_tokens=128)) as alone:
        assert engine.plan.resident_bytes < alone.plan.resident_bytes
        right = alone.decode(PROMPT)
    for path, where in ((first, "rank 1 (127.0.0.1): "), (second, "")):
        engine.decode(PROMPT[:9])
        with without_bytes(path), pytest.raises(ExpertReadError) as caught:
            decode_again(engine, PROMPT[9:], 9)
        assert str(caught.value).startswith(f"{where}could not read")
        assert caught.value.path == str(path)
        assert engine.position == 9
        engine.truncate(0)
        assert np.array_equal(engine.decode(PROMPT), right)
        engine.truncate(0)


@contextlib.contextmanager
def without_bytes(path: Path) -> Iterator[None]:
    """Cut a file off for as long as this lasts."""
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(8)
        yield
        file.seek(0)
        file.write(data)


def test_an_interrupt_ends_all_ranks(zoo: Zoo) -> None:
    engine = zoo.load(zoo.write(GROWING)[0], context_tokens=2048, prefill_chunk_tokens=8)
    engine.decode(PROMPT)
    timer = threading.Timer(0.3, engine.interrupt)
    timer.start()
    with pytest.raises(InterruptedDecodeError):
        decode_again(engine, PROMPT * 45, 40)
    timer.join()
    assert engine.position == 40
    right = engine.decode([5, 6])
    engine.truncate(40)
    assert np.array_equal(engine.decode([5, 6]), right)


def test_recurrent_layers_go_back_to_marks_on_all_ranks(zoo: Zoo) -> None:
    engine = zoo.load(zoo.write(RECURRENT)[0])
    assert not engine.can_rewind
    engine.decode(PROMPT[:9])
    engine.mark()
    right = engine.decode(PROMPT[9:20])
    assert engine.truncate(15) == 9
    assert np.array_equal(engine.decode(PROMPT[9:20]), right)
    assert engine.truncate(5) == 0


def test_what_is_no_state_changes_nothing(zoo: Zoo, tmp_path: Path) -> None:
    engine = zoo.load(zoo.write(GROWING)[0])
    engine.decode(PROMPT[:9])
    path = tmp_path / "state"
    engine.save(path)
    right = engine.decode(PROMPT[9:])
    whole = path.read_bytes()
    for data in (whole[:-1], whole[:-9] + b"x" * 9, b"", b"{}\n", b'{"ranks": [3]}\nabc'):
        engine.truncate(9)
        path.write_bytes(data)
        with pytest.raises(EngineError, match="not a usable state"):
            engine.restore(path)
        assert engine.position == 9
        assert np.array_equal(engine.decode(PROMPT[9:]), right)


def test_what_cannot_be_loaded_is_one_error(zoo: Zoo, tmp_path: Path) -> None:
    folder, *_ = zoo.write(GROWING)
    with pytest.raises(BudgetError):
        zoo.load(folder, slots=None, memory_bytes=1 << 20)
    (tmp_path / "olmoe").mkdir()
    with pytest.raises(UnsupportedModelError, match="does not split olmoe over several machines"):
        zoo.load(zoo_mlx.write(tmp_path / "olmoe", "olmoe", "affine"))
    assert np.isfinite(zoo.load(folder).decode(PROMPT)).all()


def test_the_end_of_one_rank_is_the_end_of_the_other(zoo: Zoo, ranks: Ranks) -> None:
    """The last test of this file: nothing comes after."""
    engine = zoo.load(zoo.write(GROWING)[0])
    (other,) = [one for one in psutil.Process().children() if "follow" in one.cmdline()]
    timer = threading.Timer(0.3, other.kill)
    timer.start()
    with pytest.raises(LostRankError, match=r"^rank 1 \(127\.0\.0\.1\) is gone"):
        decode_again(engine, PROMPT, 0)
    timer.join()
    with pytest.raises(LostRankError):
        engine.decode(PROMPT)
    engine.close()
    engine.close()
