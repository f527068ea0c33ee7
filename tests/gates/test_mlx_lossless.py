"""G18: streamed with MLX = mlx-lm alone, to the last bit of every logit, and the same tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import zoo_mlx
from localmoe.backends.mlx.load import load
from localmoe.settings import Settings
from zoo_mlx import FormatName
from zoo_mlx.slots import fill_slots
from zoo_torch.tokenizer import write_tokenizer

PROMPT = [(31 * place + 3) % 250 for place in range(40)]
N_DECODED = 4
CONTEXT = 128  # a prompt is one step: recurrent layers give other bits in two
SLOTS = 3  # for 8 experts of each layer
ALL_FORMATS = ("afmoe", "deepseek_v3", "glm4_moe", "gpt_oss", "nemotron_h", "qwen3_moe")
FORMATS: tuple[FormatName, ...] = ("float32", "affine", "mxfp4")
# The others in one format each, in turn; in all of them where there is time.
SOON = {(name, form) for name in ALL_FORMATS for form in FORMATS}
SOON |= {
    (name, FORMATS[place % 3])
    for place, name in enumerate(sorted(set(zoo_mlx.TINY) - set(ALL_FORMATS)))
}
CASES = [
    pytest.param(name, form, marks=() if (name, form) in SOON else pytest.mark.slow)
    for name in sorted(zoo_mlx.TINY)
    for form in FORMATS
]
Checkpoint = Callable[[str, FormatName], Path]


@pytest.fixture(scope="module", autouse=True)
def without_compiling() -> Iterator[None]:
    """MLX has a C++ compiler make kernels for the CPU: too slow for shapes that are used once."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Return a function from a type and a format to the folder of its tiny checkpoint."""
    written: dict[tuple[str, FormatName], Path] = {}

    def path(name: str, form: FormatName) -> Path:
        if (name, form) not in written:
            folder = zoo_mlx.write(tmp_path_factory.mktemp(name), name, form)
            write_tokenizer(folder)
            written[name, form] = folder
        return written[name, form]

    return path


@pytest.mark.parametrize(("name", "form"), CASES)
def test_g18_streamed_equals_mlx_lm(checkpoint: Checkpoint, name: str, form: FormatName) -> None:
    path = checkpoint(name, form)
    model = zoo_mlx.stock(path)
    with load(path, Settings(slots=SLOTS, context_tokens=CONTEXT)) as engine:
        for length in (12, 40):
            before = engine.stats()
            streamed = [engine.decode(PROMPT[:length], "all")]
            for _ in range(N_DECODED):
                streamed.append(engine.decode([int(streamed[-1][-1].argmax())]))
            plain = zoo_mlx.plain_logits(model, [PROMPT[:length]], N_DECODED)
            assert np.array_equal(np.concatenate(streamed), plain)
            assert plain.std() > 0.1
            stats = engine.stats() - before
            assert stats.misses > stats.hits
            assert stats.split_layers > 0
            engine.truncate(0)


@pytest.mark.parametrize("name", ["afmoe", "gpt_oss", "qwen3_next", "llama4", "deepseek_v3"])
@pytest.mark.parametrize("slots", [4, 11, 100_000])
def test_g18_in_chunks_at_any_number_of_slots(
    checkpoint: Checkpoint, name: str, slots: int
) -> None:
    path, chunks = checkpoint(name, "affine"), [PROMPT[:7], PROMPT[7:9], PROMPT[9:]]
    plain = zoo_mlx.plain_logits(zoo_mlx.stock(path), chunks, N_DECODED)
    with load(path, Settings(slots=slots, context_tokens=CONTEXT, policy="lru")) as engine:
        if slots > engine.plan.experts:  # with all of them there, tokens are evaluated at once
            fill_slots(engine)
        streamed = [engine.decode(chunk, "all") for chunk in chunks]
        for _ in range(N_DECODED):
            streamed.append(engine.decode([int(streamed[-1][-1].argmax())]))
    assert np.array_equal(np.concatenate(streamed), plain)


def test_one_wrong_byte_would_be_seen(checkpoint: Checkpoint) -> None:
    path = checkpoint("qwen3_moe", "float32")
    with load(path, Settings(slots=100_000, context_tokens=CONTEXT)) as engine:
        right = engine.decode(PROMPT)
        engine.truncate(0)
        for layer in engine.catalog.layers:
            lane = engine.slot_pool.lanes(layer, 1)[-1]
            view = engine.slot_pool.memory.view
            for slot in range(engine.slot_pool.limits[0]):
                view[lane.start + slot * lane.stride_nbytes + 3] ^= 0x40
            break
        assert not np.array_equal(engine.decode(PROMPT), right)


@pytest.mark.slow
def test_soak_with_any_number_of_slots(checkpoint: Checkpoint) -> None:
    """A thousand tokens; every now and then another number of slots, and another engine's bits."""
    path, source = checkpoint("qwen3_moe", "affine"), random.Random(18)
    cache, tokens = zoo_mlx.new_cache(model := zoo_mlx.stock(path)), PROMPT[:5]
    settings = Settings(slots=24, context_tokens=1100)
    with load(path, settings) as engine:
        while engine.position < 1000:
            if source.random() < 0.05:
                engine.cache.resize([source.randint(2, 24)])
            plain = zoo_mlx.step(model, tokens, cache)
            assert np.array_equal(engine.decode(tokens, "all"), plain), engine.position
            more = source.randint(1, 9) if source.random() < 0.3 else 0
            tokens = [int(plain[-1].argmax()), *(source.randrange(250) for _ in range(more))]
        assert engine.stats().misses > 500
