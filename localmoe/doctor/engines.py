"""What computes: Python, llama.cpp, the compiled callback, and what may compute one day."""

from __future__ import annotations

import re

from localmoe.backends.llama.versions import INSTALL, TESTED_VERSIONS
from localmoe.backends.opening import INSTALL_MLX, INSTALL_TORCH
from localmoe.doctor.check import Check, better, ok, stops
from localmoe.doctor.child import Answer
from localmoe.doctor.processor import processor_features
from localmoe.doctor.system import System

_PACKAGE = "llama-cpp-python"
_LEAST_PYTHON = (3, 11)
_REBUILD = (
    "CMAKE_ARGS=-DGGML_NATIVE=ON pip install --force-reinstall --no-cache-dir --no-deps "
    f"--no-binary {_PACKAGE} {_PACKAGE}=={TESTED_VERSIONS[-1]}"
)
_BUILD_CALLBACK = "pip install --force-reinstall --no-cache-dir --no-deps localmoe"
_COMPILERS = ("cc", "gcc", "clang")
_MLX = ("mlx", "mlx-lm")
TORCH_MINORS = {"torch": (2, 13), "transformers": (5, 23), "safetensors": (0, 5)}
"""The least minor version of each package that the torch engine was tested with."""
_EXACT = "transformers"
"""The next minor version of it renames an argument that every step passes."""


def check_python(system: System) -> Check:
    """Compare its version with the oldest that localmoe runs on."""
    found = ".".join(map(str, system.python))
    if system.python < _LEAST_PYTHON:
        return stops("Python", f"{found}: 3.11 or later is needed", "uv python install 3.12")
    return ok("Python", found)


def check_version(system: System) -> Check:
    """Look for the engine, in a version that localmoe was tested with."""
    found = system.version(_PACKAGE)
    if found is None:
        return stops(_PACKAGE, "not installed", INSTALL)
    if found not in TESTED_VERSIONS:
        tested = ", ".join(TESTED_VERSIONS)
        return stops(_PACKAGE, f"{found}, which localmoe was not tested with ({tested})", INSTALL)
    return ok(_PACKAGE, found)


def check_build(system: System, engine: Answer) -> Check:
    """Compare what llama.cpp was built for with what the processor has."""
    name = "llama.cpp build"
    if "died" in engine:
        return stops(name, f"the engine cannot be loaded: {engine['died']}", _REBUILD)
    if "error" in engine:
        return stops(name, f"the engine cannot be loaded: {engine['error']}", _mend(engine))
    built = set(engine["features"])
    has = processor_features(system)
    used = [feature.title for feature in has if feature.built in built]
    unused = [feature.title for feature in has if feature.built not in built]
    found = f"built for {', '.join(used) or 'any processor'}"
    if unused:
        return better(name, f"{found}, not for {', '.join(unused)}", _REBUILD)
    return ok(name, found)


def _mend(engine: Answer) -> str:
    """Return what mends an engine that did not load: the bindings, or our own library."""
    return _BUILD_CALLBACK if "_native.so" in engine["error"] else f"{INSTALL} --force-reinstall"


def check_callback(system: System, engine: Answer) -> Check:
    """Look for the compiled callback of single tokens."""
    name = "compiled callback"
    if "compiled" not in engine:
        return ok(name, "not looked at: the engine cannot be loaded")
    if engine["compiled"]:
        return ok(name, "built")
    found = "not built: single tokens take longer"
    if not any(map(system.which, _COMPILERS)):
        compiler = "xcode-select --install" if system.platform == "darwin" else "apt install gcc"
        prefix = compiler if system.platform == "darwin" else f"sudo {compiler}"
        return better(name, f"{found}; there is no C compiler", f"{prefix} && {_BUILD_CALLBACK}")
    return better(name, found, _BUILD_CALLBACK)


def check_torch(system: System, *, is_needed: bool) -> Check:
    """Look for what runs safetensors checkpoints; `is_needed`: MODEL is one."""
    name = "torch engine"
    complain = stops if is_needed else better
    found = {package: system.version(package) for package in TORCH_MINORS}
    missing = [package for package, version in found.items() if version is None]
    if missing:
        said = f"{', '.join(missing)} not installed: safetensors checkpoints do not run"
        return complain(name, said, INSTALL_TORCH)
    said = ", ".join(f"{package} {version}" for package, version in found.items())
    for package, least in TORCH_MINORS.items():
        minor = _minor(found[package] or "")
        if minor < least or (package == _EXACT and minor != least):
            wanted = ".".join(map(str, least)) + ("" if package == _EXACT else " or later")
            return complain(name, f"{said}; {package} {wanted} is needed", INSTALL_TORCH)
    return ok(name, f"{said}: runs safetensors checkpoints")


def _minor(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def check_mlx(system: System) -> Check:
    """Look for what computes on Apple silicon."""
    name, found = "MLX engine", {package: system.version(package) for package in _MLX}
    missing = [package for package, version in found.items() if version is None]
    if not missing:
        there = ", ".join(f"{package} {version}" for package, version in found.items())
        return ok(name, f"{there}: runs MLX checkpoints")
    if system.platform == "darwin" and system.machine == "arm64":
        said = f"{', '.join(missing)} not installed: safetensors and MLX checkpoints do not run"
        return better(name, said, INSTALL_MLX)
    return ok(name, "not installed: it is for Apple silicon")
