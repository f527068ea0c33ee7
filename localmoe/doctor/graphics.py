"""Graphics processors: which there are, and whether an engine that is installed uses them."""

from __future__ import annotations

from localmoe.doctor.check import Check, better, ok
from localmoe.doctor.system import System

_NAME = "GPU"
_UNUSED = "localmoe does not use it"
_WITH_CUDA = "pip uninstall -y torch && pip install 'localmoe[cuda]'"
_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")


def check_graphics(system: System) -> Check:
    """Say which there are, and what is computed there."""
    nvidia, others = _nvidia(system), _amd(system)
    if nvidia:
        return _check_cuda(system, "; ".join([*nvidia, *others]))
    if metal := _metal(system):
        return ok(_NAME, f"{metal[0]}, which the MLX engine computes on")
    return ok(_NAME, f"{'; '.join(others)}; {_UNUSED}" if others else "none, and none is needed")


def _check_cuda(system: System, found: str) -> Check:
    torch = system.version("torch")
    if torch is None:
        return ok(_NAME, f"{found}; used for safetensors checkpoints once torch is installed")
    if torch.endswith("+cpu"):
        said = f"{found}; not used: torch {torch} was built for the processor alone"
        return better(_NAME, said, _WITH_CUDA)
    return ok(_NAME, f"{found}; used for safetensors checkpoints")


def _nvidia(system: System) -> list[str]:
    listed = [line.strip() for line in (system.run(_QUERY) or "").splitlines() if line.strip()]
    if listed:
        return listed
    folder = system.path("/proc/driver/nvidia/gpus")
    count = sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0
    return [f"{count} by NVIDIA (nvidia-smi tells nothing)"] if count else []


def _amd(system: System) -> list[str]:
    return ["AMD, through /dev/kfd"] if system.path("/dev/kfd").exists() else []


def _metal(system: System) -> list[str]:
    is_apple = system.platform == "darwin" and system.machine == "arm64"
    return ["Apple, through Metal"] if is_apple else []
