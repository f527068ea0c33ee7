"""How much memory llama.cpp will take besides weights, found before anything is allocated.

A child process loads the header alone and asks llama.cpp to plan its KV cache and compute buffers.
llama.cpp aborts its process on some damaged headers; here it is the child that dies, and the parent
raises a clear error.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from localmoe.errors import EngineError, LocalMoeError, ModelFormatError, SettingsError
from localmoe.settings import KvType

CHUNK_CANDIDATES = (512, 256, 128, 64, 32, 16, 8, 4, 2, 1)
_TIMEOUT_SECONDS = 120
_ENTRY = (
    "import json, sys; request = json.load(sys.stdin); sys.path[:] = request.pop(); "
    "from localmoe.backends.llama.dry_run import child; child(request)"
)
_CACHE_SIZE = re.compile(r"^\w+: (?:.*, )?size = +([\d.]+) MiB(?: \(|$)")
"""Of a KV cache, of recurrent states, and of DeepSeek-V4's compressors, which name it last."""
_RECURRENT = "llama_memory_recurrent:"
_MARK_ROOM_NBYTES = 64 << 10  # above the rounded size that llama.cpp logs
_COMPUTE_SIZE = re.compile(r"compute buffer size = +([\d.]+) MiB")
_OUTPUT_SIZE = re.compile(r"output buffer size = +([\d.]+) MiB")


@dataclass(frozen=True)
class Footprint:
    """What llama.cpp needs for one prefill chunk length. Bytes."""

    chunk_tokens: int
    kv_bytes: int
    """The KV cache and recurrent states."""
    compute_bytes: int
    mark_bytes: int = 0
    """Room for marks of recurrent states; 0 without such layers."""


@dataclass(frozen=True)
class DryRun:
    """The child's findings; `model_bytes` is what tokenizer and tensor tables take."""

    footprints: tuple[Footprint, ...]
    model_bytes: int


def dry_run(
    paths: Sequence[str],
    *,
    context_tokens: int,
    chunks: Sequence[int] = CHUNK_CANDIDATES,
    experts_used: tuple[str, int] | None = None,
    kv_type: KvType = "f16",
) -> DryRun:
    """Measure in a child process.

    Raises ModelFormatError when llama.cpp refuses or dies, SettingsError when only `kv_type` is to
    blame for that, EngineError when there is no answer.
    """
    request = [list(paths), context_tokens, list(chunks), experts_used]
    try:
        return _ask_child(paths[0], [*request, kv_type])
    except ModelFormatError as error:
        if kv_type == "f16":
            raise
        _ask_child(paths[0], [*request, "f16"])  # raises what is wrong with the model itself
        raise SettingsError(
            f"kv_type {kv_type} was wanted, but llama.cpp cannot keep the context of this model in "
            f"it ({error}). Use --kv-type f16."
        ) from error


def _ask_child(path: str, values: Sequence[object]) -> DryRun:
    request = json.dumps([*values, [entry for entry in sys.path if entry]])
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _ENTRY],
            input=request.encode(),
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelFormatError(
            f"{path}: llama.cpp did not finish reading the header in {_TIMEOUT_SECONDS} s. "
            "The machine is overloaded, or the file is damaged."
        ) from error
    except OSError as error:
        raise EngineError(
            f"cannot start a process that reads the header of {path}: {error.strerror}. Close "
            "other programs, or lift the limit on processes (ulimit -u)."
        ) from error
    _check_end(path, done)
    try:
        answer = json.loads(done.stdout)
    except ValueError as error:
        raise EngineError(f"the dry run failed: {_last_line(done.stderr)}") from error
    if "error" in answer:
        raise ModelFormatError(f"{path}: {answer['error']}")
    return DryRun(tuple(Footprint(**f) for f in answer["footprints"]), answer["model_bytes"])


def _check_end(path: str, done: subprocess.CompletedProcess[bytes]) -> None:
    """Raise for a child that a signal ended."""
    if done.returncode == -signal.SIGKILL:
        raise EngineError(
            f"the process that read the header of {path} was killed, most likely because the "
            "machine ran out of memory. Close other programs; where that does not help, the file "
            "is damaged."
        )
    if done.returncode < 0:
        raise ModelFormatError(
            f"{path}: llama.cpp gave up on this header (signal {-done.returncode}): "
            f"{_last_line(done.stderr)}. The file is damaged, or made for another version."
        )


def _last_line(output: bytes) -> str:
    lines = [line for line in output.decode(errors="replace").splitlines() if line.strip()]
    aborts = [line for line in lines if "GGML_ASSERT" in line or "Error" in line]
    return (aborts or lines or ["no message"])[-1].strip()


def child(request: list[Any]) -> None:
    """Answer one request on standard output: the child's side of `dry_run`."""
    paths, context_tokens, chunks, experts_used, kv_type = request
    used = (experts_used[0], experts_used[1]) if experts_used else None
    try:
        run = _measure(paths, context_tokens, chunks, used, kv_type)
        answer = asdict(run)
    except LocalMoeError as error:
        answer = {"error": str(error)}
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)  # nothing of llama.cpp's tear-down matters here


def _measure(
    paths: Sequence[str],
    context_tokens: int,
    chunks: Sequence[int],
    experts_used: tuple[str, int] | None,
    kv_type: KvType,
) -> DryRun:
    import psutil

    from localmoe.backends.llama import parameters
    from localmoe.backends.llama.bindings import L
    from localmoe.backends.llama.skeleton import Skeleton
    from localmoe.weights.gguf_header import read_header

    process = psutil.Process()
    L.llama_backend_init()
    before = process.memory_info().rss
    with Skeleton([read_header(path) for path in paths]) as skeleton:
        model = parameters.open_model(skeleton.paths, dry=True, experts_used=experts_used)
        after = process.memory_info().rss
        footprints = tuple(_footprint(model, context_tokens, chunk, kv_type) for chunk in chunks)
    return DryRun(footprints, max(0, after - before))


def _footprint(model: int, context_tokens: int, chunk: int, kv_type: KvType) -> Footprint:
    from localmoe.backends.llama import log, parameters
    from localmoe.backends.llama.bindings import L
    from localmoe.backends.llama.marks import KEPT

    context = parameters.open_context(
        model, context_tokens=context_tokens, chunk_tokens=chunk, threads=1, kv_type=kv_type
    )
    lines = log.lines()
    L.llama_free(context)
    caches = [float(m[1]) for line in lines if (m := _CACHE_SIZE.match(line))]
    compute = [float(m[1]) for line in lines if (m := _COMPUTE_SIZE.search(line))]
    output = [float(m[1]) for line in lines if (m := _OUTPUT_SIZE.search(line))]
    if not compute or not caches:
        raise EngineError(
            "llama.cpp logged no sizes of its KV cache and compute buffers; this version is not "
            "the one that localmoe was tested with"
        )
    mib = 1 << 20
    recurrent = [
        float(m[1])
        for line in lines
        if line.startswith(_RECURRENT) and (m := _CACHE_SIZE.match(line))
    ]
    mark_bytes = KEPT * (int(sum(recurrent) * mib) + _MARK_ROOM_NBYTES) if recurrent else 0
    compute_bytes = int((compute[-1] + sum(output)) * mib)
    return Footprint(chunk, int(sum(caches) * mib), compute_bytes, mark_bytes)
