"""What `localmoe bench decode` shows to people."""

from __future__ import annotations

import sys
from typing import Any

from rich.table import Table

from localmoe.cli.terminal import console_for
from localmoe.planning.sizes import format_nbytes

Answer = dict[str, Any]


def show(answer: Answer) -> None:
    """Print the figures, one per line, and a sentence on the fraction."""
    table = Table.grid(padding=(0, 3))
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows(answer):
        table.add_row(name, value)
    console = console_for(sys.stdout)
    console.print(table)
    console.print(f"\n{explanation(answer)}")


def rows(answer: Answer) -> list[tuple[str, str]]:
    """Return the lines of the table: what, and how much."""
    lines = [
        ("decode", _speed(answer["tokens_per_second"])),
        ("prefill", _speed(answer["extra"]["prefill_tokens_per_second"])),
        *(() if _is_dense(answer) else _expert_rows(answer)),
        ("load", f"{answer['load_seconds']:.2f} s"),
        ("memory at its peak", format_nbytes(answer["peak_rss_bytes"])),
        ("memory budget", format_nbytes(answer["budget_bytes"])),
        ("last logits", f"sha256 {answer['logits_sha256'][:16]}"),
    ]
    if "peer" in answer:
        lines += _peer_rows(answer)
    return lines


def _is_dense(answer: Answer) -> bool:
    return int(answer["extra"]["model"]["experts"]) == 0


def _expert_rows(answer: Answer) -> list[tuple[str, str]]:
    return [
        ("experts in memory", f"{answer['slots']} of {answer['extra']['model']['experts']}"),
        ("found in memory", f"{answer['hit_rate']:.1%}"),
        ("read per token", _megabytes(answer["bytes_read_per_token"])),
        ("waited per token", f"{1e3 * answer['stall_seconds_per_token']:.1f} ms"),
        *_split_rows(answer["extra"]),
        ("device alone", f"{answer['device_bytes_per_second'] / 1e9:.2f} GB/s"),
        ("all experts in memory", _speed(answer["resident_tokens_per_second"])),
        ("limit of this machine", _speed(answer["limit_tokens_per_second"])),
        ("reached", _share(answer["fraction_of_limit"])),
    ]


def _split_rows(extra: Answer) -> list[tuple[str, str]]:
    """Say what it cost that prefill steps touched more experts than there are slots."""
    if not extra["prefill_split_layers"]:
        return []
    seconds = extra["prefill_split_seconds"]
    return [("prefill in passes", f"{extra['prefill_split_layers']} layers, {seconds:.2f} s")]


def explanation(answer: Answer) -> str:
    """Say in one sentence what the fraction means."""
    if _is_dense(answer):
        return "A dense model: all of its weights are in memory, and nothing is read per token."
    compute = answer["resident_tokens_per_second"]
    if compute is None:
        return f"The limit is unknown: {answer['extra']['resident_unknown']}."
    reading = answer["bytes_read_per_token"] / answer["device_bytes_per_second"]
    return (
        f"A token takes {1e3 / answer['tokens_per_second']:.1f} ms; the limit is the longer of "
        f"reading ({1e3 * reading:.1f} ms) and computing ({1e3 / compute:.1f} ms): "
        f"{answer['fraction_of_limit']:.2f} of it was reached."
    )


def _peer_rows(answer: Answer) -> list[tuple[str, str]]:
    peer = answer["peer"]
    name = f"llama.cpp, {peer['name']}"
    if peer["tokens_per_second"] is None:
        return [(name, peer["error"])]
    count = f"{peer['tokens']} tokens" + (", repacked" if peer["repacked"] else "")
    lines = [
        (f"{name} ({count})", _speed(peer["tokens_per_second"])),
        ("localmoe is faster by", f"{answer['ratio']:.2f} times"),
    ]
    if peer["logits_equal"] is not None:
        lines.append(("the same logits", "yes" if peer["logits_equal"] else "NO"))
    return lines


def _speed(tokens_per_second: float | None) -> str:
    return "unknown" if tokens_per_second is None else f"{tokens_per_second:.2f} tok/s"


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def _megabytes(nbytes: float) -> str:
    return f"{nbytes / 1e6:.1f} MB"
