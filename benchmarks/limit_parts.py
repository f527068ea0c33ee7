"""The parts of limit.py: each measures its sides in turn and returns raw samples and figures."""

from __future__ import annotations

import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from limit_child import run_worker
from limit_figures import (
    breakdown,
    decode_figures,
    peer_ratio,
    prefill_figures,
    spread,
    start_figures,
)
from manifest import Answer, bench_decode

from localmoe.bench.request import DecodeRequest, PeerRequest, PrefillRequest
from localmoe.settings import Settings, available_threads

GIB = 1 << 30
DEVICE_SECONDS = 2.0
WARM_UP_TOKENS = 48
"""After a prompt of 32. Behind the first of them it waits until all slots are there."""
PREFILL_TOKENS, PREFILL_CONTEXT = 2000, 2048
WANTED_PEER_RATIO, PEER_LOAD_SECONDS = 10.0, 60.0
DROPPED = ("command", "logits_sha256_after", "machine", "versions")
"""Of each answer: the record says it once, or nobody needs it."""


@dataclass(frozen=True)
class Streamed:
    """One streamed side: how much memory, or how many slots, under which limit."""

    settings: Settings
    limit_mib: int


@dataclass(frozen=True)
class DecodeCase:
    """A model, its streamed sides by name, and the tokens that all sides are forced along."""

    model: Path
    sides: dict[str, Streamed]
    tokens: int
    prompt_tokens: int = 32
    warm_up_tokens: int = WARM_UP_TOKENS
    text: Path | None = None
    trace: Path | None = None
    resident: Settings = field(default_factory=Settings)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure_decode(case: DecodeCase, rounds: int) -> Answer:
    """Each round: every streamed side on a cold page cache, all experts in memory, the device."""
    raw: list[Answer] = []
    found: dict[str, list[Answer]] = {name: [] for name in case.sides}
    for number in range(1, rounds + 1):
        one: Answer = {
            name: run_worker("decode", _job(case, side.settings), limit_mib=side.limit_mib)
            for name, side in case.sides.items()
        }
        one["resident"] = run_worker("decode", _job(case, case.resident, streams=False))
        if one["resident"]["extra"]["streams"]:
            raise SystemExit("the machine has not enough free memory for all experts at once")
        one["device"] = run_worker("device", _device_job(case.model))
        bandwidth = best_bandwidth(one, case.sides)
        for name in case.sides:
            found[name].append(decode_figures(one[name], one["resident"], bandwidth))
            same = one[name]["logits_sha256"] == one["resident"]["logits_sha256"]
            found[name][-1]["logits_equal_resident"] = None if case.trace else same
            say(f"round {number}, {name}: {found[name][-1]}")
        raw.append({name: _brief(answer) for name, answer in one.items()})
    return {
        "warm_up": {"prompt_tokens": case.prompt_tokens, "tokens": case.warm_up_tokens},
        "tokens": case.tokens,
        "fraction": {name: spread([f["fraction"] for f in rows]) for name, rows in found.items()},
        "figures": found,
        "raw": raw,
    }


def best_bandwidth(answers: Answer, sides: dict[str, Streamed]) -> float:
    """Return the fastest of a round's readings of the device: the strictest limit."""
    found = [answers[name]["device_bytes_per_second"] for name in sides]
    return max([answers["device"]["bytes_per_second"], *found])


def measure_prefill(model: Path, limit_mib: int, rounds: int) -> Answer:
    """Read a long prompt: streamed, all in memory (own chunk, and the same), and the peer."""
    base = Settings(context_tokens=PREFILL_CONTEXT)
    streamed = Settings(context_tokens=PREFILL_CONTEXT, memory_bytes=limit_mib << 20)
    raw, figures, ratios = [], [], []
    for number in range(1, rounds + 1):
        ours = run_worker("prefill", _prefill_job(model, streamed), limit_mib=limit_mib)
        chunk = ours["plan"]["prefill_chunk_tokens"]
        same = Settings(context_tokens=PREFILL_CONTEXT, prefill_chunk_tokens=chunk)
        one = {"streamed": ours, "resident": run_worker("prefill", _prefill_job(model, base))}
        if one["resident"]["plan"]["prefill_chunk_tokens"] != chunk:
            one["resident, same chunk"] = run_worker("prefill", _prefill_job(model, same))
        device = run_worker("device", _device_job(model))
        residents = [answer for name, answer in one.items() if name != "streamed"]
        bandwidth = max(device["bytes_per_second"], ours["device_bytes_per_second"])
        figures.append(prefill_figures(ours, residents, bandwidth))
        peer = _measure_peer(model, limit_mib, chunk, ours["seconds"])
        ratios.append(peer_ratio(peer, figures[-1]))
        say(f"round {number}, prefill: {figures[-1]}, peer: {ratios[-1]}")
        raw.append({**one, "device": device, "peer": peer})
    return {
        "tokens": PREFILL_TOKENS,
        "fraction": spread([f["fraction"] for f in figures]),
        "ratio": spread([r["ratio"] for r in ratios]),
        "figures": figures,
        "ratios": ratios,
        "raw": raw,
    }


def _measure_peer(model: Path, limit_mib: int, chunk: int, seconds: float) -> Answer:
    request = PeerRequest(
        model=str(model),
        name="mmap",
        tokens=0,
        prompt_tokens=PREFILL_TOKENS,
        context_tokens=PREFILL_CONTEXT,
        chunk_tokens=chunk,
        threads=available_threads(),
    )
    deadline = WANTED_PEER_RATIO * seconds + PEER_LOAD_SECONDS
    peer = run_worker(
        "peer-prefill", request.to_json(), limit_mib=limit_mib, deadline_seconds=deadline
    )
    return {"chunk_tokens": chunk, **peer}


def measure_start(model: Path, limit_mib: int, rounds: int) -> Answer:
    """Start with nothing in the page cache, and stop the clock when a short prompt was read."""
    figures: dict[str, list[Answer]] = {"1": [], "8": []}
    for number in range(1, rounds + 1):
        for prompt_tokens, found in figures.items():
            answer = bench_decode(
                model,
                *("--memory", f"{limit_mib}MiB", "--prompt-tokens", prompt_tokens),
                *("--tokens", "1"),
                limit_mib=limit_mib,
            )
            found.append(start_figures(answer))
            say(f"round {number}, start, {prompt_tokens} prompt tokens: {found[-1]}")
    return {
        "share_of_bound": {
            name: spread([f["share_of_bound"] for f in found]) for name, found in figures.items()
        },
        "figures": figures,
    }


def measure_busy(model: Path, limit_mib: int, rounds: int, tokens: int) -> Answer:
    """Decode beside a busy process and alone, in turn, in one engine."""
    settings = Settings(context_tokens=1024, memory_bytes=limit_mib << 20)
    job = {**_request(model, settings, tokens), "rounds": rounds}
    answer = run_worker("busy", job, limit_mib=limit_mib)
    alone, beside = (answer["tokens_per_second"][side] for side in ("alone", "beside"))
    shares = [b / a for a, b in zip(alone, beside, strict=True)]
    say(f"busy: {shares}")
    return {**answer, "share": spread(shares)}


def measure_where(model: Path, limit_mib: int, rounds: int, tokens: int) -> Answer:
    """Put clocks around the hook; computing is that of a run with all experts in memory."""
    streamed = Settings(context_tokens=1024, memory_bytes=limit_mib << 20)
    raw, parts = [], []
    for number in range(1, rounds + 1):
        where = run_worker("where", _request(model, streamed, tokens), limit_mib=limit_mib)
        resident = run_worker("decode", _request(model, Settings(context_tokens=1024), tokens))
        compute_seconds = 1 / resident["tokens_per_second"]
        parts.append(breakdown(where, compute_seconds))
        say(f"round {number}, where: {parts[-1]}")
        raw.append({"where": where, "compute_seconds": compute_seconds})
    names = ("compute", "stall", "callback", "rest")
    return {
        "seconds_per_token": {n: statistics.median(p[n] for p in parts) for n in names},
        "parts": parts,
        "raw": raw,
    }


def _job(case: DecodeCase, settings: Settings, *, streams: bool = True) -> Answer:
    job = _request(case.model, settings, case.tokens)
    job |= {"prompt_tokens": case.prompt_tokens, "warm_up_tokens": case.warm_up_tokens}
    job["text"] = str(case.text) if case.text else None
    job["trace"] = str(case.trace) if case.trace and streams else None
    return job


def _request(model: Path, settings: Settings, tokens: int) -> Answer:
    return DecodeRequest(str(model), settings, tokens, warm_up_tokens=WARM_UP_TOKENS).to_json()


def _prefill_job(model: Path, settings: Settings) -> Answer:
    return asdict(PrefillRequest(str(model), settings, PREFILL_TOKENS))


def _device_job(model: Path) -> Answer:
    return {"model": str(model), "seconds": DEVICE_SECONDS}


def _brief(answer: Answer) -> Answer:
    extra = {k: v for k, v in answer.get("extra", {}).items() if k not in DROPPED}
    brief = {k: v for k, v in answer.items() if k not in DROPPED}
    return {**brief, "extra": extra} if extra else brief
