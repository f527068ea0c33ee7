"""`localmoe bench`: options in, one benchmark out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import typer

from localmoe.bench.request import DecodeRequest, PeerName, PeerRequest
from localmoe.cli import bench_cache, bench_measure, bench_predict, bench_try
from localmoe.cli.bench_options import (
    AsJson,
    Compiled,
    DeviceSeconds,
    Model,
    PeerTokens,
    PromptTokens,
    Rounds,
    Slots,
    Tokens,
    WithPeer,
)
from localmoe.cli.bench_progress import share_bar
from localmoe.cli.demo import demo_model_path
from localmoe.cli.hosts import Hosts, ranks_for
from localmoe.cli.options import (
    Context,
    CpuExperts,
    Devices,
    Engines,
    ExpertsUsed,
    KvTypeName,
    KvTypes,
    Memory,
    Mirrors,
    Policies,
    PolicyKind,
    Threads,
    Vram,
    engine_settings,
)
from localmoe.cli.terminal import dim_line
from localmoe.errors import SettingsError

HELP = """Measure decode speed, and how close it comes to what the machine allows.

A fixed stream of tokens is decoded one by one, whatever the model would have said. Then, in the
same run, the device is read as fast as it delivers experts, and the last token is decoded again
with all its experts in memory. The slower of the two is the limit.

Without MODEL the embedded demonstration model is measured; --experts-used 6 with a small --memory
makes it stream.

\b
Examples:
  localmoe bench decode big.gguf --memory 8GiB
  localmoe bench decode big.gguf --memory 8GiB --peer mmap --rounds 3
  localmoe bench decode --memory 330MiB --experts-used 6
"""
_CHILD = (sys.executable, "-m", "localmoe.cli.bench_child")
_CONTEXT_TOKENS = 1024

app = typer.Typer(help="Measure speed.", no_args_is_help=True)
app.command("predict", help=bench_predict.HELP)(bench_predict.predict)
app.command("cache", help=bench_cache.HELP)(bench_cache.cache)
app.command("measure", help=bench_measure.HELP)(bench_measure.measure)
app.command("try", help=bench_try.HELP)(bench_try.run_trial)


@app.command("decode", help=HELP)
def decode(  # noqa: PLR0913 (the command line's options are this function's parameters)
    model: Model = None,
    memory: Memory = None,
    tokens: Tokens = 64,
    prompt_tokens: PromptTokens = 32,
    threads: Threads = None,
    context: Context = _CONTEXT_TOKENS,
    kv_type: KvTypes = KvTypeName.F16,
    as_json: AsJson = False,
    peer: WithPeer = None,
    peer_tokens: PeerTokens = None,
    rounds: Rounds = 1,
    device_seconds: DeviceSeconds = 1.0,
    slots: Slots = None,
    engine: Engines = None,
    device: Devices = None,
    vram: Vram = None,
    cpu_experts: CpuExperts = False,
    policy: Policies = PolicyKind.NEXT_USE,
    compiled: Compiled = True,
    experts_used: ExpertsUsed = None,
    mirror: Mirrors = None,
    hosts: Hosts = None,
) -> None:
    """Build the request, measure, show."""
    # Each side of a comparison is a process of its own: what only they need is imported there.
    from localmoe.bench.rounds import PEER_TOKENS_STREAMING, peer_for

    hash_after = () if peer is None else (peer_tokens or min(PEER_TOKENS_STREAMING, tokens),)
    settings = engine_settings(
        *(memory, context, kv_type, threads, engine, device, vram, cpu_experts),
        *(policy, experts_used, mirror),
    )
    request = DecodeRequest(
        model=str(model or demo_model_path()),
        settings=replace(settings, compiled=compiled, slots=slots),
        tokens=tokens,
        prompt_tokens=prompt_tokens,
        device_seconds=device_seconds,
        hash_after=hash_after,
    )
    name: PeerName | None = peer.value if peer else None
    make_peer = name and partial(peer_for, request, name, peer_tokens)
    answer = _measure(request, rounds, make_peer, hosts)
    if as_json:
        typer.echo(json.dumps(answer))
        return
    from localmoe.cli.bench_table import show

    show(answer)


def _measure(
    request: DecodeRequest,
    rounds: int,
    make_peer: Callable[[dict[str, Any]], PeerRequest] | None,
    hosts: Path | None,
) -> dict[str, Any]:
    """Measure in this process, or in one process per side and round where there are several."""
    if rounds == 1 and make_peer is None:
        return _measure_here(request, hosts)
    if hosts:
        raise SettingsError("--hosts is for one round without a peer")

    from localmoe.bench.process import run_child
    from localmoe.bench.rounds import alternate

    def run(one: DecodeRequest | PeerRequest) -> dict[str, Any] | None:
        return run_child(_CHILD, one, os.environ)

    def on_stage(side: str, number: int, count: int) -> None:
        if sys.stderr.isatty():
            dim_line(f"round {number} of {count}: {side}")

    return alternate(request, run, rounds, make_peer, on_stage)


def _measure_here(request: DecodeRequest, hosts: Path | None) -> dict[str, Any]:
    from localmoe.backends.opening import opening

    with (
        ranks_for(hosts) as ranks,
        opening(Path(request.model), request.settings.engine) as open_it,
        share_bar() as progress,
    ):
        from localmoe.bench.decode import measure_decode
        from localmoe.cli.stats_file import peak_rss_bytes

        request = replace(request, settings=replace(request.settings, ranks=ranks))
        report = measure_decode(request, progress, open_it)
    return {**report, "peak_rss_bytes": peak_rss_bytes()}
