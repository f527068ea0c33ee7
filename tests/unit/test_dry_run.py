"""The dry run's sizes are those of what llama.cpp then allocates."""

from __future__ import annotations

import errno
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from localmoe.backends.llama import dry_run as module
from localmoe.backends.llama import log, parameters
from localmoe.backends.llama.bindings import L
from localmoe.backends.llama.dry_run import DryRunChild, dry_run
from localmoe.errors import EngineError, ModelFormatError, SettingsError
from localmoe.settings import KvType

CONTEXT, CHUNK = 4096, 8
BUFFER_SIZE = re.compile(r"\b(?:KV|RS|state) buffer size = +([\d.]+) MiB")

# One of each kind of memory: keys and values, windows, recurrent states, an index beside them,
# sparse attention, compressed keys.
MODELS = ("qwen3moe", "afmoe", "jamba", "qwen4exp", "glm-dsa", "minimax-m3", "deepseek4")


def allocated_mib(path: Path) -> list[float]:
    """Return the sizes of all buffers but those for computing and for logits."""
    model = parameters.open_model([str(path)])
    context = parameters.open_context(
        model, context_tokens=CONTEXT, chunk_tokens=CHUNK, threads=1, kv_type="f16"
    )
    lines = log.lines()
    L.llama_free(context)
    L.llama_model_free(model)
    return [float(match[1]) for line in lines if (match := BUFFER_SIZE.search(line))]


@pytest.mark.parametrize("name", MODELS)
def test_all_caches_and_states_are_counted(name: str, zoo_model: Callable[[str], Path]) -> None:
    path = zoo_model(name)
    run = dry_run([str(path)], context_tokens=CONTEXT, chunks=[CHUNK])
    buffers = allocated_mib(path)
    assert min(buffers) > 0.0
    # Buffers and caches are logged to a hundredth, and the least buffer is larger than that.
    assert run.footprints[0].kv_bytes / 2**20 == pytest.approx(sum(buffers), abs=0.009)


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("import os; os.abort()", ModelFormatError, "signal 6"),
        ("import os; os.kill(os.getpid(), 9)", EngineError, "ran out of memory"),
        ("raise ImportError('no such module')", EngineError, "ImportError: no such module"),
        ("print('no answer')", EngineError, "the dry run failed: no message"),
    ],
)
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_how_the_child_ends(
    monkeypatch: pytest.MonkeyPatch, code: str, kind: type[Exception], message: str, kv_type: KvType
) -> None:
    """What went wrong with the process is not the fault of a type of the KV cache."""
    monkeypatch.setattr(module, "_ENTRY", code)
    with pytest.raises(kind, match=message):
        dry_run(["model.gguf"], context_tokens=CONTEXT, kv_type=kv_type)


def test_a_machine_without_room_for_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(EngineError, match="Cannot allocate memory"):
        dry_run(["model.gguf"], context_tokens=CONTEXT)


def test_a_child_that_nobody_asks_is_ended() -> None:
    with DryRunChild() as child:
        process = child._process
        assert process.poll() is None
    assert process.returncode == -signal.SIGKILL
    child.close()


def test_a_child_that_was_started_before(zoo_model: Callable[[str], Path]) -> None:
    path = str(zoo_model("qwen3moe"))
    with DryRunChild() as child:
        run = dry_run([path], context_tokens=64, chunks=[CHUNK], child=child)
    assert run.footprints == dry_run([path], context_tokens=64, chunks=[CHUNK]).footprints


def test_a_type_that_the_context_cannot_have(zoo_model: Callable[[str], Path]) -> None:
    with pytest.raises(SettingsError, match=r"kv_type q4_0 was wanted.*Use --kv-type f16"):
        dry_run([str(zoo_model("grok"))], context_tokens=64, chunks=[CHUNK], kv_type="q4_0")


def test_long_requests_and_a_folder_with_modules_of_its_own(
    zoo_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    path = str(zoo_model("qwen3moe"))
    chunks = [CHUNK] * 3
    monkeypatch.setattr(sys, "path", [*sys.path, "x" * (200 << 10)])
    assert len(dry_run([path], context_tokens=64, chunks=chunks).footprints) == 3
