"""One side of limit.py: what to do as arguments, JSON lines as answer, the last one the result.

python benchmarks/limit_worker.py KIND JOB
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import limit_probe

from localmoe.backends.llama.engine import LlamaEngine
from localmoe.backends.llama.load import load
from localmoe.backends.llama.source import open_source
from localmoe.bench.decode import measure_engine
from localmoe.bench.device import measure_device
from localmoe.bench.machine import process_age_seconds
from localmoe.bench.plain_llama import measure_peer_prefill
from localmoe.bench.prefill import measure_prefill
from localmoe.bench.request import DecodeRequest, PeerRequest, PrefillRequest
from localmoe.bench.rerouted import reroute
from localmoe.bench.tokens import token_stream
from localmoe.prediction.trace_reader import read_trace
from localmoe.settings import Settings

Answer = dict[str, Any]


def decode(job: Answer) -> Answer:
    """`bench decode`, along a recorded routing if the job names one."""
    trace = job.pop("trace", None)
    request = _request(job)
    with load(request.model, request.settings) as engine:
        if trace and engine.plan.streams:
            reroute(engine, read_trace(Path(trace)))
        before = limit_probe.device_read_bytes()
        answer = measure_engine(engine, request)
        after = limit_probe.device_read_bytes()
    if before is not None and after is not None:
        answer["extra"]["process_read_bytes"] = after - before
    return answer


def where(job: Answer) -> Answer:
    """Decode with clocks around the hook: where a token's time goes."""
    request = _request(job)
    probe = limit_probe.Probe()
    with load(request.model, request.settings) as engine:
        counted_from = request.prompt_tokens + request.warm_up_tokens
        tokens = token_stream(counted_from + request.tokens, engine.tokenizer.n_vocab)
        _warm_up(engine, request, tokens)
        before = probe.snapshot(engine)
        began = time.perf_counter()
        for token in tokens[counted_from:]:
            engine.decode([token])
        seconds = time.perf_counter() - began
        spent = limit_probe.per_token(before, probe.snapshot(engine), request.tokens)
    return {"token_seconds": seconds / request.tokens, "tokens": request.tokens, **spent}


def busy(job: Answer) -> Answer:
    """Decode some tokens alone, then some beside a busy process, in turn, in one engine."""
    rounds = job.pop("rounds")
    request = _request(job)
    speeds: dict[str, list[float]] = {"alone": [], "beside": []}
    with load(request.model, request.settings) as engine:
        count = request.prompt_tokens + request.warm_up_tokens + 2 * rounds * request.tokens
        tokens = token_stream(count, engine.tokenizer.n_vocab)
        _warm_up(engine, request, tokens)
        at = request.prompt_tokens + request.warm_up_tokens
        for _ in range(rounds):
            for side, found in speeds.items():
                with _neighbour(side == "beside"):
                    began = time.perf_counter()
                    for token in tokens[at : at + request.tokens]:
                        engine.decode([token])
                    found.append(request.tokens / (time.perf_counter() - began))
                at += request.tokens
    return {"tokens_per_second": speeds, "tokens": request.tokens}


def device(job: Answer) -> Answer:
    """Read the device alone, as an engine's misses do."""
    source = open_source(job["model"], None)
    try:
        workers = job.get("workers") or Settings().read_workers
        speed = measure_device(source.catalog, workers=workers, seconds=job["seconds"])
        resident_bytes = source.catalog.resident_nbytes
    finally:
        source.close()
    return {
        "bytes_per_second": speed.bytes_per_second,
        "read_bytes": speed.mean_read_nbytes,
        "reads": speed.reads,
        "workers": workers,
        "resident_bytes": resident_bytes,
    }


def prefill(job: Answer) -> Answer:
    """Read one prompt."""
    settings = Settings(**job.pop("settings"))
    return measure_prefill(PrefillRequest(settings=settings, **job))


def peer_prefill(job: Answer) -> Answer:
    """Read the same prompt with llama.cpp alone; tell of each chunk when it is done."""

    def on_chunk(tokens: int, seconds: float) -> None:
        told = {"tokens": tokens, "seconds": seconds, "process_seconds": process_age_seconds()}
        print(json.dumps(told), flush=True)

    return measure_peer_prefill(PeerRequest(**job), on_chunk)


def _warm_up(engine: LlamaEngine, request: DecodeRequest, tokens: list[int]) -> None:
    """As `measure_engine` does it."""
    at = request.prompt_tokens
    engine.decode(tokens[:at])
    for token in tokens[at : at + request.warm_up_tokens]:
        engine.decode([token])
        if engine.slot_pool:
            engine.slot_pool.wait_grown()


def _request(job: Answer) -> DecodeRequest:
    return DecodeRequest(settings=Settings(**job.pop("settings")), **job)


@contextlib.contextmanager
def _neighbour(wanted: bool) -> Iterator[None]:
    """Keep one core busy meanwhile, with a process that no core is set apart for."""
    if not wanted:
        yield
        return
    process = subprocess.Popen(
        [sys.executable, "-c", "print('', flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    )
    try:
        process.stdout.readline()  # type: ignore[union-attr]  # it is running, not starting
        yield
    finally:
        process.kill()
        process.communicate()


KINDS: dict[str, Callable[[Answer], Answer]] = {
    "decode": decode,
    "where": where,
    "busy": busy,
    "device": device,
    "prefill": prefill,
    "peer-prefill": peer_prefill,
}

if __name__ == "__main__":
    print(json.dumps(KINDS[sys.argv[1]](json.loads(sys.argv[2]))))
