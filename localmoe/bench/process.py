"""Runs one side of a benchmark in a process of its own, and survives its death."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from localmoe.bench.request import DecodeRequest, PeerRequest
from localmoe.errors import EngineError, LocalMoeError

_LIBGOMP_SPINCOUNT = "300000"  # libgomp's own default, written out


def run_child(
    command: Sequence[str], request: DecodeRequest | PeerRequest, environment: Mapping[str, str]
) -> dict[str, Any] | None:
    """Return the child's answer; None if it was killed from outside, as by a memory limit.

    `command` takes "decode" or "peer" and the request as JSON, and prints JSON. `environment` is
    that of the caller. Raises LocalMoeError with the child's own message.
    """
    is_peer = isinstance(request, PeerRequest)
    kind = "peer" if is_peer else "decode"
    done = subprocess.run(
        [*command, kind, json.dumps(request.to_json())],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        env=_environment(environment, is_peer=is_peer),
    )
    if done.returncode == -signal.SIGKILL:
        return None
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        lines = done.stderr.decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
        how = f"ended with status {done.returncode}"
        if done.returncode < 0:
            how = f"died of signal {-done.returncode}"
        raise EngineError(f"the {kind} process of the benchmark {how}: {last}") from error
    if "error" in answer:
        raise LocalMoeError(answer["error"])
    return answer


def _environment(environment: Mapping[str, str], *, is_peer: bool) -> dict[str, str]:
    result = {**environment, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    # Our bindings choose how OpenMP waits; the peer gets what it has without them.
    if is_peer and "OMP_WAIT_POLICY" not in environment:
        result.setdefault("GOMP_SPINCOUNT", _LIBGOMP_SPINCOUNT)
    return result
