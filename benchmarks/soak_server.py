"""Claim: 50 clients at once, half of them leaving in the middle, do a server no harm.

    python benchmarks/soak_server.py [--minutes 5] [--clients 50]

`localmoe serve` runs with the demonstration model in little memory and saves its conversations. The
clients speak all four APIs, whole and as streams; every other one goes away in the middle of its
answers, some while they wait. No answer may be an error but 429, memory, threads and descriptors
must not grow after the first minute, and at the end the engine must be idle. Ends with status 1 if
anything was wrong.
"""

from __future__ import annotations

import asyncio
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from manifest import entry_state, options, record

PATHS = ("chat/completions", "completions", "responses", "messages")
MEMORY = "352MiB"
"""Not all of the demonstration model's experts fit."""
SAMPLE_SECONDS = 5.0
WARM_UP_SHARE = 0.2
MOST_GROWTH_BYTES = 16 << 20
WORDS = ["sea", "owl", "tree", "music", "bread", "river", "winter", "city", "stone", "light"]


@dataclass
class Tally:
    """What the clients saw, and how the server was meanwhile."""

    statuses: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    left: int = 0
    whole: int = 0
    samples: list[dict[str, float]] = field(default_factory=list)


def body(path: str, chance: random.Random) -> dict[str, Any]:
    """Return a request; some continue a conversation."""
    text = f"Tell me about the {chance.choice(WORDS)} and the {chance.choice(WORDS)}."
    common = {"model": "demo", "stream": chance.random() < 0.7}
    length = chance.randint(4, 32)
    if path == "completions":
        return {**common, "prompt": text, "max_tokens": length}
    if path == "responses":
        return {**common, "input": text, "max_output_tokens": length}
    messages = [{"role": "user", "content": text}]
    if chance.random() < 0.3:
        messages += [
            {"role": "assistant", "content": "Gladly."},
            {"role": "user", "content": "Go on."},
        ]
    return {**common, "messages": messages, "max_tokens": length}


async def client(number: int, url: str, end: float, tally: Tally) -> None:
    """Ask until the time is over; clients with odd numbers leave in the middle."""
    chance = random.Random(number)
    leaves = number % 2 == 1
    while time.monotonic() < end:
        path = chance.choice(PATHS)
        patience = chance.uniform(0.05, 3.0) if leaves else None
        # A connection of its own each time: leaving means that it is closed.
        async with httpx.AsyncClient(timeout=120) as http:
            try:
                async with asyncio.timeout(patience):
                    response = await http.post(f"{url}/v1/{path}", json=body(path, chance))
            except TimeoutError:
                tally.left += 1
                continue
            except httpx.HTTPError as error:
                tally.errors.append(f"{type(error).__name__}: {error}")
                continue
        tally.statuses[str(response.status_code)] += 1
        if response.status_code == 429:
            await asyncio.sleep(chance.uniform(0.2, 1.5))
        elif response.status_code != 200 or '"error": {' in response.text:
            tally.errors.append(f"{response.status_code} {path}: {response.text[:300]}")
        else:
            tally.whole += 1


async def watch(process: psutil.Process, end: float, tally: Tally) -> None:
    """Note how much the server holds."""
    began = time.monotonic()
    while time.monotonic() < end:
        await asyncio.sleep(SAMPLE_SECONDS)
        tally.samples.append(
            {
                "seconds": round(time.monotonic() - began, 1),
                "rss_bytes": process.memory_info().rss,
                "threads": process.num_threads(),
                "descriptors": process.num_fds(),
            }
        )


async def run(url: str, process: psutil.Process, clients: int, seconds: float) -> Tally:
    """Let all clients ask for so long."""
    tally, end = Tally(), time.monotonic() + seconds
    asking = [client(number, url, end, tally) for number in range(clients)]
    await asyncio.gather(watch(process, end, tally), *asking)
    return tally


def figures(url: str) -> dict[str, float]:
    """Return the server's own figures, once it is idle."""
    found: dict[str, float] = {}
    for _ in range(100):
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        found = {name: float(value) for name, value in pairs}
        if found["localmoe_waiting"] == found["localmoe_running"] == 0:
            break
        time.sleep(0.1)
    return found


def verdict(tally: Tally, end: dict[str, float]) -> tuple[dict[str, Any], list[str]]:
    """Return how things grew, and what was wrong."""
    warm = tally.samples[int(len(tally.samples) * WARM_UP_SHARE) :]
    third = max(len(warm) // 3, 1)

    def growth(name: str) -> float:
        early = sorted(s[name] for s in warm[:third])[third // 2]
        late = sorted(s[name] for s in warm[-third:])[third // 2]
        return late - early

    grown = {name: growth(name) for name in ("rss_bytes", "threads")}
    wrong = list(tally.errors)
    if grown["rss_bytes"] > MOST_GROWTH_BYTES:
        wrong.append(f"memory has grown by {grown['rss_bytes'] / 2**20:.1f} MiB")
    if grown["threads"] > 0:
        wrong.append(f"threads have grown by {grown['threads']:.0f}")
    if end["localmoe_waiting"] or end["localmoe_running"]:
        wrong.append("the engine is not idle at the end")
    if not end["localmoe_expert_misses_total"]:
        wrong.append("all experts were in memory: nothing was read")
    if tally.left < 10 or tally.whole < 10:
        wrong.append(f"too little happened: {tally.left} left, {tally.whole} were answered")
    return grown, wrong


def main() -> None:
    """Serve, ask, judge, record."""
    parser = options(__doc__, rounds=1)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=50)
    asked = parser.parse_args()
    entry = entry_state()
    with tempfile.TemporaryDirectory() as sessions:
        arguments = ["--port", "0", "--memory", MEMORY, "--context", "1024", "--sessions", sessions]
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "localmoe",
                "serve",
                "--no-profile",
                "--name",
                "demo",
                *arguments,
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert server.stderr is not None
        url = next(
            found[0] for line in server.stderr if (found := re.search(r"http://[\d.:]+", line))
        )
        # Read on, so that the server never waits for somebody to read what it says.
        rest = subprocess.Popen(["cat"], stdin=server.stderr, stdout=subprocess.DEVNULL)
        process = psutil.Process(server.pid)
        idle = {"descriptors": process.num_fds(), "rss_bytes": process.memory_info().rss}
        tally = asyncio.run(run(url, process, asked.clients, asked.minutes * 60))
        end = figures(url)
        last = {"descriptors": process.num_fds(), "rss_bytes": process.memory_info().rss}
        saved = sum(1 for path in Path(sessions).iterdir() if path.suffix == ".kv")
        server.terminate()
        status = server.wait(60)
        rest.wait(60)
    grown, wrong = verdict(tally, end)
    if last["descriptors"] > idle["descriptors"] + 2:
        wrong.append(f"descriptors: {idle['descriptors']} at first, {last['descriptors']} at last")
    if status:
        wrong.append(f"the server ended with status {status}")
    result = {
        "clients": asked.clients,
        "minutes": asked.minutes,
        "statuses": dict(tally.statuses),
        "left_in_the_middle": tally.left,
        "answered": tally.whole,
        "growth_after_warm_up": grown,
        "idle_before": idle,
        "idle_after": last,
        "saved_states": saved,
        "figures": end,
        "wrong": wrong,
        "samples": tally.samples,
    }
    record(asked.data, "soak-server", entry, result)
    print({name: value for name, value in result.items() if name != "samples"})
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
