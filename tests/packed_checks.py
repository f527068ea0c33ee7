"""What test_torch_packed.py runs where Triton interprets: the engine with kernels."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import torch

from localmoe.backends.torch.engine import TorchEngine
from localmoe.backends.torch.load import load
from localmoe.backends.torch.packed_experts import PackedExperts
from localmoe.settings import Settings
from zoo_torch.late_device import LateTorchDevice

GIB = 1 << 30
PROMPT = [(31 * place + 3) % 128 for place in range(2)]


def check_engine(folder: Path) -> None:
    """With kernels: the same bits for any slots, and nearly those of the loop."""
    looped = logits_of(open_on(folder, 100_000, packed=False))
    forward = PackedExperts.forward
    with patch.object(PackedExperts, "forward", autospec=True, side_effect=forward) as used:
        whole = logits_of(open_on(folder, 100_000))
    assert used.call_count > 0
    torch.testing.assert_close(whole, looped, atol=0.03 * float(looped.std()), rtol=0.05)
    assert torch.equal(logits_of(open_on(folder, 8)), whole)


def open_on(folder: Path, slots: int, *, packed: bool = True) -> TorchEngine:
    """Open a checkpoint on a late device; without kernels where that is asked for."""
    settings = Settings(slots=slots, vram_bytes=GIB, memory_bytes=4 * GIB, context_tokens=64)
    engine = load(folder, settings, device=LateTorchDevice(slots))
    assert engine.note == "", engine.note
    experts = [module.localmoe for module in modules(engine)]
    assert all(isinstance(each._packed, PackedExperts) for each in experts)
    for each in experts if not packed else ():
        each._packed = None
    return engine


def modules(engine: TorchEngine) -> list[torch.nn.Module]:
    """Return the modules of experts that are served."""
    served = engine._open().model.modules()
    return [module for module in served if getattr(module, "localmoe", None) is not None]


def logits_of(engine: TorchEngine) -> torch.Tensor:
    """Read a short prompt and close."""
    with engine:
        return torch.from_numpy(engine.decode(PROMPT, "all"))
