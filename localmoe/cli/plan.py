"""`localmoe plan`: will it fit, how fast, and what would help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from localmoe.cli.options import Context, KvTypeName, KvTypes, Memory, Threads
from localmoe.cli.plan_options import (
    AsJson,
    EveryModel,
    MachineFile,
    MachineName,
    Model,
    Quant,
    TraceFile,
)
from localmoe.errors import SettingsError
from localmoe.settings import Settings

if TYPE_CHECKING:
    from localmoe.cli.planner import Planner

HELP = """Say whether a model fits a machine, where every byte goes, and how fast it would be.

Nothing is downloaded and nothing is loaded: a file's or a repository's header is read, and of a \
known model its published configuration. llama.cpp itself says what it needs beside the weights. \
Tokens per second come as a range, with the formula behind them (docs/planning.md).

--machine is this one unless another is named: dgx-spark, mac-studio-m3-ultra-512, \
mac-m4-max-128, strix-halo-128, rtx-4090-64, rtx-5090-96, or one of --machine-file.

\b
Examples:
  localmoe plan big.gguf --memory 8GiB                        this machine, in 8 GiB
  localmoe plan trinity-large --quant q4_k_m --machine dgx-spark --context 32k
  localmoe plan unsloth/GLM-4.7-GGUF:Q4_K_M                   a repository, before downloading it
  localmoe plan Qwen/Qwen3-30B-A3B                            the same, of safetensors
  localmoe plan --all --machine strix-halo-128                all known models on one machine

\b
A machine file:
  [workstation]
  title = "Two sockets and an array of drives"
  memory = "256GiB"
  memory_per_second = "200GB"
  read_per_second = "20GB"
"""


def plan(  # noqa: PLR0913 (the command line's options are this function's parameters)
    model: Model = None,
    quant: Quant = None,
    machine: MachineName = "this",
    machine_file: MachineFile = None,
    memory: Memory = None,
    context: Context = 4096,
    kv_type: KvTypes = KvTypeName.F16,
    threads: Threads = None,
    trace: TraceFile = None,
    every: EveryModel = False,
    as_json: AsJson = False,
) -> None:
    """Build the request, plan, show."""
    if every == bool(model):
        raise SettingsError("name one MODEL to plan for, or compare all with --all")
    if every and trace:
        raise SettingsError("--trace is of one model: leave out --all")
    from localmoe.cli.bench_measure import disk_folder
    from localmoe.cli.planner import Planner

    planner = Planner(
        machine,
        machine_file,
        Settings(
            memory_bytes=memory, context_tokens=context, kv_type=kv_type.value, threads=threads
        ),
        trace,
        disk_folder(Path(model) if model and Path(model).exists() else None),
    )
    if every:
        _compare(planner, quant, as_json)
        return
    from localmoe.cli.plan_target import plan_target

    with plan_target(model or "", quant) as target:
        planned = planner.plan(target)
    if as_json:
        typer.echo(json.dumps(planned.as_json()))
        return
    from localmoe.cli.plan_page import show

    show(planned)


def _compare(planner: Planner, quant: str | None, as_json: bool) -> None:
    from localmoe.cli.plan_table import compare, show_table

    rows = compare(planner, quant)
    if as_json:
        typer.echo(json.dumps({"machine": planner.title, "models": rows}))
    else:
        show_table(planner, rows)
