"""Processor and cores; and whether llama.cpp was built for them."""

from __future__ import annotations

from typing import NamedTuple

from localmoe.doctor.check import Check, better, not_here, ok
from localmoe.doctor.system import System
from localmoe.planning.machine import cpu_model


class Feature(NamedTuple):
    """Instructions that kernels gain from, and what Linux, macOS and llama.cpp call them."""

    title: str
    linux: str
    darwin: str
    built: str


_X86 = (
    Feature("AVX2", "avx2", "avx2_0", "AVX2"),
    Feature("FMA", "fma", "fma", "FMA"),
    Feature("F16C", "f16c", "f16c", "F16C"),
    Feature("AVX-512", "avx512f", "avx512f", "AVX512"),
    Feature("AVX-512 VNNI", "avx512_vnni", "avx512vnni", "AVX512_VNNI"),
    Feature("AVX-512 BF16", "avx512_bf16", "avx512bf16", "AVX512_BF16"),
    Feature("AMX", "amx_int8", "amx_int8", "AMX_INT8"),
)
_ARM = (
    Feature("NEON", "asimd", "AdvSIMD", "NEON"),
    Feature("dot products", "asimddp", "arm.FEAT_DotProd", "DOTPROD"),
    Feature("int8 matrices", "i8mm", "arm.FEAT_I8MM", "MATMUL_INT8"),
    Feature("SVE", "sve", "arm.FEAT_SVE", "SVE"),
)
FEATURES = {"x86_64": _X86, "AMD64": _X86, "aarch64": _ARM, "arm64": _ARM}
"""By machine."""


def check_processor(system: System) -> Check:
    """Name it, and the instructions that it has."""
    name = "processor"
    has = [feature.title for feature in processor_features(system)]
    return ok(name, f"{_model(system)} ({', '.join(has) or 'nothing that kernels gain from'})")


def processor_features(system: System) -> list[Feature]:
    """Return which of the instructions that matter the processor has."""
    known = FEATURES.get(system.machine, ())
    if system.platform == "darwin":
        lines = (system.run(("sysctl", "hw.optional")) or "").splitlines()
        values = dict(line.partition(": ")[::2] for line in lines)
        return [f for f in known if values.get(f"hw.optional.{f.darwin}") == "1"]
    info = system.fields("/proc/cpuinfo")
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return [f for f in known if f.linux in flags]


def _model(system: System) -> str:
    if system.platform == "darwin":
        return (system.run(("sysctl", "-n", "machdep.cpu.brand_string")) or "unknown").strip()
    return cpu_model(system.path("/proc/cpuinfo"))


def check_cores(system: System) -> Check:
    """Compare the cores that this process may use with those that are there and those allowed."""
    name = "cores"
    if system.platform == "darwin":
        return ok(name, (system.run(("sysctl", "-n", "hw.ncpu")) or "unknown").strip())
    if not system.is_linux:
        return not_here(name)
    lines = (system.read("/proc/cpuinfo") or "").splitlines()
    there = sum(line.startswith("processor") for line in lines)
    usable = _count(system.fields("/proc/self/status").get("Cpus_allowed_list", "")) or there
    found = f"{usable} usable of {there}" if there else f"{usable} usable"
    quota = _quota_cores(system)
    if quota is not None and quota < usable:
        return better(
            name,
            f"{found}, but a control group allows the time of {quota:.1f}: threads wait for others",
            f"localmoe run --threads {max(1, int(quota))}",
        )
    return ok(name, found)


def _count(ranges: str) -> int:
    """Return how many cores a list such as 0-3,8 names."""
    count = 0
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        if first.strip().isdigit():
            count += int(last or first) - int(first) + 1
    return count


def _quota_cores(system: System) -> float | None:
    """Return how many cores' time the tightest control group allows; None: no limit."""
    shares = []
    for text in system.group_files("cpu", "cpu.max"):
        quota, _, period = text.partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            shares.append(int(quota) / int(period))
    quotas = system.group_files("cpu", "cpu.cfs_quota_us")
    periods = system.group_files("cpu", "cpu.cfs_period_us")
    for quota, period in zip(quotas, periods, strict=False):
        if quota.isdigit() and period.isdigit() and int(period):
            shares.append(int(quota) / int(period))
    return min(shares, default=None)
