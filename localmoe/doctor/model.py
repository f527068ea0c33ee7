"""Whether a model would run here: the one that was named, or the demonstration model."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from localmoe.demo.builder import MODEL_NBYTES, ready_demo_model
from localmoe.demo.source import INSTALL, check_source, find_source
from localmoe.doctor.check import Check, ok, stops
from localmoe.doctor.child import Answer, Ask
from localmoe.doctor.folders import writing_error
from localmoe.doctor.system import System, existing
from localmoe.errors import ModelError
from localmoe.planning.machine import available_memory_bytes
from localmoe.planning.sizes import format_nbytes

NAME = "model"
_DEMO_MEMORY_BYTES = 370 << 20
"""About what the demonstration model needs at least."""

_SPARE_MIB = 8
"""What a process holds is not the same each time."""


def check_model(path: Path, memory_bytes: int | None, ask: Ask) -> Check:
    """Read a model's header and plan for it, as `localmoe run` does before it reads weights."""
    answer = ask(("model", str(path), str(memory_bytes or 0)))
    if "died" in answer:
        return stops(NAME, f"the process that read it: {answer['died']}", _again(path))
    if "error" in answer:
        return stops(NAME, answer["error"], _mend(path, memory_bytes, answer))
    return ok(NAME, _said(answer))


def _said(answer: Answer) -> str:
    shards = f"{answer['files']} files, " if answer["files"] > 1 else ""
    experts = f"{answer['experts']} experts" if answer["experts"] else "dense"
    how = "its experts are streamed" if answer["streams"] else "all of it fits"
    return (
        f"{answer['architecture']}, {shards}{format_nbytes(answer['nbytes'])}, {experts}; needs "
        f"{answer['smallest_mib']} MiB at least; {how} in {format_nbytes(answer['budget_bytes'])}"
    )


def _mend(path: Path, memory_bytes: int | None, answer: Answer) -> str:
    kind, run = answer["kind"], f"localmoe run {quote(str(path))}"
    if kind == "ModelNotFoundError":
        return f"ls -l {quote(str(path.absolute().parent))}"
    if kind == "ModelFormatError":
        return _again(path)
    if kind == "UnsupportedModelError":
        return "pip install --upgrade localmoe, or another model"
    if kind == "BudgetError":
        if memory_bytes:
            return f"{run} --memory {answer['smallest_mib'] + _SPARE_MIB}MiB"
        return f"close other programs, or: {run} --context 1024"
    return run


def _again(path: Path) -> str:
    files = f"{quote(str(path))}/*" if path.is_dir() else quote(str(path))
    return f"sha256sum {files}, to compare with where it came from; then download it again"


def check_demo(system: System, cache: Path, memory_bytes: int | None, ask: Ask) -> Check:
    """Look whether the demonstration model is there and runs, or could be built."""
    try:
        ready = ready_demo_model(cache)
        if ready:
            return check_model(ready, memory_bytes, ask)
        check_source(find_source())
    except ModelError as error:
        return stops(NAME, str(error), f"{INSTALL} --force-reinstall")
    except OSError as error:
        return stops(NAME, f"cannot read {cache}: {error.strerror}", f"ls -la {quote(str(cache))}")
    trouble = writing_error(cache)
    if trouble:
        return stops(
            NAME,
            f"the demonstration model cannot be built in {cache}: {trouble}",
            "export LOCALMOE_CACHE=/a/folder/that/is/yours",
        )
    if system.free_bytes(existing(cache)) < MODEL_NBYTES:
        return stops(
            NAME,
            f"the demonstration model takes {format_nbytes(MODEL_NBYTES)}, more than the drive of "
            f"{cache} has left",
            "export LOCALMOE_CACHE=/a/folder/with/room",
        )
    return _demo_fits(memory_bytes or available_memory_bytes())


def _demo_fits(budget_bytes: int) -> Check:
    if budget_bytes < _DEMO_MEMORY_BYTES:
        return stops(
            NAME,
            f"the demonstration model needs about {format_nbytes(_DEMO_MEMORY_BYTES)}, and "
            f"{format_nbytes(budget_bytes)} are there",
            "close what is large: ps -eo rss,comm --sort=-rss | head",
        )
    return ok(NAME, "the demonstration model, which is built on first use")
