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
from contextlib import suppress
from dataclasses import asdict, dataclass

from localmoe.closing import Closing
from localmoe.errors import EngineError, LocalMoeError, ModelFormatError, SettingsError
from localmoe.settings import KvType

CHUNK_CANDIDATES = (2048, 1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1)
_TIMEOUT_SECONDS = 120
_ENTRY = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.readline()); "
    "from localmoe.backends.llama.dry_run import child; child()"
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


class DryRunChild(Closing):
    """The child process: started early, it gets its imports done before it is asked.

    It answers one request. Close it, asked or not.
    """

    def __init__(self) -> None:
        """Start it. Raises EngineError."""
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _ENTRY],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            raise EngineError(
                f"cannot start a process that reads the model's header: {error.strerror}. Close "
                "other programs, or lift the limit on processes (ulimit -u)."
            ) from error
        self._send([entry for entry in sys.path if entry])

    def ask(self, path: str, values: Sequence[object]) -> DryRun:
        """Send a request and wait for the findings. Raises ModelFormatError, EngineError."""
        self._send(values)
        try:
            output, errors = self._process.communicate(timeout=_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ModelFormatError(
                f"{path}: llama.cpp did not finish reading the header in {_TIMEOUT_SECONDS} s. "
                "The machine is overloaded, or the file is damaged."
            ) from error
        _check_end(path, self._process.returncode, errors)
        try:
            answer = json.loads(output)
        except ValueError as error:
            raise EngineError(f"the dry run failed: {_last_line(errors)}") from error
        if "error" in answer:
            raise ModelFormatError(f"{path}: {answer['error']}")
        return DryRun(tuple(Footprint(**f) for f in answer["footprints"]), answer["model_bytes"])

    def close(self) -> None:
        """End the process, if it has not ended. May be called twice."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe:
                with suppress(BrokenPipeError):
                    pipe.close()
        self._process.wait()

    def _send(self, values: Sequence[object]) -> None:
        if self._process.stdin:
            with suppress(BrokenPipeError):  # it has died: how is told when it is asked
                self._process.stdin.write(json.dumps(values).encode() + b"\n")
                self._process.stdin.flush()


def dry_run(
    paths: Sequence[str],
    *,
    context_tokens: int,
    chunks: Sequence[int] = CHUNK_CANDIDATES,
    experts_used: tuple[str, int] | None = None,
    kv_type: KvType = "f16",
    child: DryRunChild | None = None,
) -> DryRun:
    """Measure in a child process: one that was started before, or a new one.

    Raises ModelFormatError when llama.cpp refuses or dies, SettingsError when only `kv_type` is to
    blame for that, EngineError when there is no answer.
    """
    request = [list(paths), context_tokens, list(chunks), experts_used]
    try:
        return _ask(child or DryRunChild(), paths[0], [*request, kv_type])
    except ModelFormatError as error:
        if kv_type == "f16":
            raise
        # Raises what is wrong with the model itself.
        _ask(DryRunChild(), paths[0], [*request, "f16"])
        raise SettingsError(
            f"kv_type {kv_type} was wanted, but llama.cpp cannot keep the context of this model in "
            f"it ({error}). Use --kv-type f16."
        ) from error


def _ask(child: DryRunChild, path: str, values: Sequence[object]) -> DryRun:
    with child:
        return child.ask(path, values)


def _check_end(path: str, status: int, errors: bytes) -> None:
    """Raise for a child that a signal ended."""
    if status == -signal.SIGKILL:
        raise EngineError(
            f"the process that read the header of {path} was killed, most likely because the "
            "machine ran out of memory. Close other programs; where that does not help, the file "
            "is damaged."
        )
    if status < 0:
        raise ModelFormatError(
            f"{path}: llama.cpp gave up on this header (signal {-status}): "
            f"{_last_line(errors)}. The file is damaged, or made for another version."
        )


def _last_line(output: bytes) -> str:
    lines = [line for line in output.decode(errors="replace").splitlines() if line.strip()]
    aborts = [line for line in lines if "GGML_ASSERT" in line or "Error" in line]
    return (aborts or lines or ["no message"])[-1].strip()


def child() -> None:
    """Answer one request on standard output: the child's side of `dry_run`."""
    from localmoe.backends.llama import parameters  # noqa: F401 (takes time, and is needed then)

    line = sys.stdin.readline()
    if not line:  # nobody asks any more
        os._exit(0)
    paths, context_tokens, chunks, experts_used, kv_type = json.loads(line)
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
