"""G17: experts in the memory of a device, with host memory behind it, give the bits of one memory.

The device is a late one: a copy is made when something waits for it, and not before, so that what
is computed with a slot too early, or copied over too soon, shows in the logits. The rest runs as it
would on a GPU, through torch's streams and events for the processor.
"""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

import zoo_torch
from localmoe.backends.torch import attached
from localmoe.backends.torch.device import TorchDevice
from localmoe.backends.torch.engine import TorchEngine
from localmoe.backends.torch.far_experts import Costs, FarExperts, measure
from localmoe.backends.torch.load import load
from localmoe.errors import BudgetError, ExpertReadError, SettingsError
from localmoe.settings import Settings
from zoo_torch.late_device import LateTorchDevice

pytestmark = pytest.mark.usefixtures("one_torch_thread")
PROMPT = [(31 * place + 3) % 128 for place in range(16)]
TYPES = (
    "afmoe",
    "deepseek_v3",
    "gpt_oss",
    "llama4_text",
    "longcat_flash",
    "nemotron_h",
    "qwen3_next",
)
GIB = 1 << 30
"""No slots are missing because of the budget: tests give their number."""


def open_on(device: TorchDevice | None, path: Path, slots: int) -> TorchEngine:
    settings = Settings(
        slots=slots,
        memory_bytes=4 * GIB,
        vram_bytes=GIB if device else None,
        context_tokens=64,
        threads=1,
    )
    return load(path, settings, device=device)


def logits_of(engine: TorchEngine) -> Tensor:
    """Read a prompt in two steps, decode three tokens, go back, and read again."""
    found = [engine.decode(PROMPT[:9], "all"), engine.decode(PROMPT[9:], "all")]
    for _ in range(3):
        found.append(engine.decode([int(found[-1][-1].argmax())]))
    engine.truncate(0)
    found.append(engine.decode(PROMPT[:3], "all"))
    return torch.from_numpy(np.concatenate(found))


def fewest(engine: TorchEngine) -> int:
    classes = engine.slot_pool.classes
    return sum(max(layer.n_experts_used for layer in each.layers) for each in classes)


@pytest.mark.parametrize("name", TYPES)
def test_g17_two_memories_equal_one(tmp_path: Path, name: str) -> None:
    zoo_torch.write(tmp_path, name, torch.bfloat16, max_shard_size="40KB")
    zoo_torch.write_tokenizer(tmp_path)
    with open_on(None, tmp_path, 100_000) as engine:
        expected, least = logits_of(engine), fewest(engine)
    for slots in (least, least + 3, 100_000):
        for device in (LateTorchDevice(slots), TorchDevice(torch.device("cpu"))):
            with open_on(device, tmp_path, slots) as engine:
                assert torch.equal(logits_of(engine), expected)
                stats = engine.stats()
                assert stats.copied_bytes >= stats.read_bytes
                assert engine.plan.behind is not None
    assert expected.std() > 0.01


@pytest.mark.parametrize("name", ["afmoe", "gpt_oss", "llama4_text"])
@pytest.mark.parametrize("copy_seconds", [None, 1.0, 0.0])
def test_g17_experts_that_the_processor_multiplies(
    tmp_path: Path, name: str, copy_seconds: float | None
) -> None:
    """Here the device is the processor, so these give the same bits, too. None: measured."""
    zoo_torch.write(tmp_path, name, torch.bfloat16)
    zoo_torch.write_tokenizer(tmp_path)
    with open_on(None, tmp_path, 100_000) as engine:
        expected = logits_of(engine)
    settings = Settings(
        slots=8, memory_bytes=4 * GIB, vram_bytes=GIB, context_tokens=64, cpu_experts=True
    )
    made = None if copy_seconds is None else {0: Costs(1e-6, copy_seconds)}
    with (
        patch.object(FarExperts, "hold", autospec=True, side_effect=FarExperts.hold) as held,
        patch.object(attached, "measure", side_effect=lambda *given: made or measure(*given)),
        load(tmp_path, settings, device=LateTorchDevice()) as engine,
    ):
        assert torch.equal(logits_of(engine), expected)
    if made:
        assert (held.call_count > 0) == (copy_seconds == 1.0)


def test_too_little_memory_of_a_device_is_refused(tmp_path: Path) -> None:
    zoo_torch.write(tmp_path, "afmoe", torch.bfloat16)
    zoo_torch.write_tokenizer(tmp_path)
    settings = Settings(vram_bytes=1 << 20, context_tokens=64, threads=1)
    with pytest.raises(BudgetError, match=r"Use --vram \d+MiB or more"):
        load(tmp_path, settings, device=LateTorchDevice())


def test_too_little_memory_behind_it_is_refused(tmp_path: Path) -> None:
    zoo_torch.write(tmp_path, "afmoe", torch.bfloat16)
    zoo_torch.write_tokenizer(tmp_path)
    settings = Settings(vram_bytes=GIB, memory_bytes=1 << 20, context_tokens=64, threads=1)
    with pytest.raises(BudgetError, match=r"use --memory \d+MiB or more"):
        load(tmp_path, settings, device=LateTorchDevice())


def test_a_failed_read_ends_a_step_and_the_next_one_works(tmp_path: Path) -> None:
    zoo_torch.write(tmp_path, "afmoe", torch.bfloat16)
    zoo_torch.write_tokenizer(tmp_path)
    with open_on(None, tmp_path, 100_000) as engine:
        expected = engine.decode(PROMPT, "all")
    with open_on(LateTorchDevice(), tmp_path, 8) as engine:
        file = next(tmp_path.glob("*.safetensors"))
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])  # the same file, cut off: reads come short
        with pytest.raises(ExpertReadError):
            engine.decode(PROMPT, "all")
        file.write_bytes(whole)
        assert np.array_equal(engine.decode(PROMPT, "all"), expected)


def test_a_saved_context_goes_on_in_the_other_memory(tmp_path: Path) -> None:
    zoo_torch.write(tmp_path, "afmoe", torch.bfloat16)
    zoo_torch.write_tokenizer(tmp_path)
    with open_on(None, tmp_path, 100_000) as engine:
        engine.decode(PROMPT, "none")
        engine.save(tmp_path / "state")
        expected = engine.decode([5])
    with open_on(LateTorchDevice(), tmp_path, 8) as engine:
        engine.restore(tmp_path / "state")
        assert np.array_equal(engine.decode([5]), expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(device="cuda"), "--device cuda wants an NVIDIA GPU"),
        (Settings(vram_bytes=GIB), "--vram is for a GPU"),
    ],
)
def test_a_gpu_that_is_not_there_is_not_used(
    tmp_path: Path, settings: Settings, words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        load(tmp_path, settings)
