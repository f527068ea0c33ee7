"""G15: streamed with torch = resident = transformers alone, to the last bit of every logit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import zoo_torch
from localmoe.backends.torch.engine import TorchEngine
from localmoe.backends.torch.load import load
from localmoe.errors import ModelError
from localmoe.settings import Settings

pytestmark = pytest.mark.usefixtures("one_torch_thread")
PROMPT = [(31 * place + 3) % 128 for place in range(16)]
N_DECODED = 3
REFUSED = {
    "ernie4_5_vl_moe": "made of 16 tensors",  # experts for pictures are split off when it is loaded
    "minimax": "cache of its own",
    "qwen3_omni_moe_thinker": "could not load",
}
TYPES = sorted(set(zoo_torch.TINY) - set(REFUSED))
IN_FLOAT32 = ("afmoe", "deepseek_v3", "gpt_oss", "nemotron_h", "qwen3_moe", "qwen3_next")
# Transformers computes every expert for every token there, as one product of all.
CLOSE = {("llama4", torch.float32), ("llama4_text", torch.float32)}
CASES = [(each, torch.bfloat16) for each in TYPES]
CASES += [(each, torch.float32) for each in (*IN_FLOAT32, "llama4_text")]
Checkpoint = Callable[[str, torch.dtype], Path]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Return a function from a type to the folder of its tiny checkpoint, in many shards."""
    written: dict[tuple[str, torch.dtype], Path] = {}

    def path(name: str, dtype: torch.dtype) -> Path:
        if (name, dtype) not in written:
            folder = tmp_path_factory.mktemp(name)
            zoo_torch.write(folder, name, dtype, max_shard_size="40KB")
            zoo_torch.write_tokenizer(folder)
            written[name, dtype] = folder
        return written[name, dtype]

    return path


def fewest_slots(engine: TorchEngine) -> int:
    classes = engine.slot_pool.classes
    return sum(max(layer.n_experts_used for layer in each.layers) for each in classes)


def logits_of(engine: TorchEngine, chunks: list[list[int]]) -> torch.Tensor:
    found = [engine.decode(chunk, "all") for chunk in chunks]
    for _ in range(N_DECODED):
        found.append(engine.decode([int(found[-1][-1].argmax())]))
    return torch.from_numpy(np.concatenate(found))


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=lambda value: str(value).split(".")[-1])
def test_g15_streamed_equals_resident_equals_transformers(
    checkpoint: Checkpoint, name: str, dtype: torch.dtype
) -> None:
    path = checkpoint(name, dtype)
    with load(path, Settings(slots=100_000, context_tokens=64, threads=1)) as engine:
        resident, slots = logits_of(engine, [PROMPT]), fewest_slots(engine)
    with load(path, Settings(slots=slots, context_tokens=64, threads=1)) as engine:
        streamed, stats = logits_of(engine, [PROMPT]), engine.stats()
    assert stats.misses > stats.hits
    assert torch.equal(resident, streamed)
    model = zoo_torch.stock(path, dtype, "eager")
    stock = zoo_torch.logits_of(model, PROMPT, N_DECODED).float().reshape(resident.shape)
    if (name, dtype) in CLOSE:
        torch.testing.assert_close(resident, stock, atol=5e-6, rtol=0)
    else:
        assert torch.equal(resident, stock)
    assert resident.std() > 0.01


def test_a_prompt_in_chunks_goes_on_where_it_was(checkpoint: Checkpoint) -> None:
    """transformers alone would start over with every chunk of jamba."""
    path, found = checkpoint("jamba", torch.float32), []
    for chunks in ([PROMPT], [PROMPT[:9], PROMPT[9:]]):
        with load(path, Settings(slots=100_000, context_tokens=64, threads=1)) as engine:
            found.append(logits_of(engine, chunks))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["afmoe", "gpt_oss", "qwen3_next", "llama4_text", "longcat_flash"])
@pytest.mark.parametrize("policy", ["lru", "next-use"])
def test_g15_in_chunks_at_any_number_of_slots(
    checkpoint: Checkpoint, name: str, policy: str
) -> None:
    path = checkpoint(name, torch.bfloat16)
    chunks = [PROMPT[:7], PROMPT[7:9], PROMPT[9:]]
    found = []
    for slots in (100_000, 4, 7, 11):
        settings = Settings(slots=slots, context_tokens=64, threads=1, policy=policy)  # type: ignore[arg-type]
        with load(path, settings) as engine:
            found.append(logits_of(engine, chunks))
    assert all(torch.equal(one, found[0]) for one in found[1:])


def test_one_wrong_byte_would_be_seen(checkpoint: Checkpoint) -> None:
    path = checkpoint("qwen3_moe", torch.bfloat16)
    with load(path, Settings(slots=100_000, context_tokens=64, threads=1)) as engine:
        right = engine.decode(PROMPT)
        engine.truncate(0)
        memory = engine.slot_pool.memory
        for start in range(0, memory.nbytes, 64):  # somewhere in every expert
            memory.view[start] ^= 0x40
        assert not np.array_equal(engine.decode(PROMPT), right)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_streamed_is_refused(checkpoint: Checkpoint, name: str) -> None:
    path = checkpoint(name, torch.bfloat16)
    with pytest.raises(ModelError, match=REFUSED[name]):
        load(path, Settings(slots=100, context_tokens=64, threads=1))
