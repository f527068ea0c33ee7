"""Tables of docs/measurements/README.md: what is kept, read, guessed, and how a start goes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from table_words import listed, said, samples

Record = dict[str, Any]


def eviction_table(record: Record) -> list[str]:
    lines = [
        "| policy | found in memory | read per token, MB | waited, ms | tok/s (median) | blocks |",
        "|---|---|---|---|---|---|",
    ]
    for name, middle in record["medians"].items():
        lines.append(
            f"| {name} | {middle['hit_rate']:.1%} | {middle['read_bytes_per_token'] / 1e6:.1f} | "
            f"{1e3 * middle['stall_seconds_per_token']:.1f} | {middle['tokens_per_second']:.2f} | "
            f"{listed([block['tokens_per_second'] for block in record['blocks'][name]])} |"
        )
    verdict = record["verdict"]
    return [
        *lines,
        "",
        f"{record['slots']} slots, blocks of {record['block_tokens']} tokens in turn. Speed "
        f"{verdict['speed_ratio']:.2f} times, bytes read {verdict['read_ratio']:.2f} times those "
        f"of lru. Logits equal: {said(verdict['logits_equal'])}.",
    ]


def warm_start_table(record: Record) -> list[str]:
    lines = [
        "| side | prompt, s (median) | rounds | found in memory | tok/s (median) | rounds |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in record["runs"].items():
        lines.append(
            f"| {name} | {samples([run['prompt_seconds'] for run in runs])} | "
            f"{record['medians'][name]['hit_rate']:.1%} | "
            f"{samples([run['tokens_per_second'] for run in runs])} |"
        )
    return [
        f"{record['memory_mib']} MiB, {record['idle_seconds']} s between loading and a prompt of "
        f"{record['prompt_tokens']} tokens, then {record['tokens']} more:",
        "",
        *lines,
        "",
        f"Logits equal: {said(record['verdict']['logits_equal'])}.",
    ]


def reads_table(record: Record) -> list[str]:
    rows: dict[str, list[Record]] = {}
    label: dict[str, Callable[[Record], str]] = {
        "workers": lambda row: f"threads: {row['workers']}",
        "lengths": lambda row: f"reads of {row['nbytes'] >> 10} KiB",
        "mirror": lambda row: row["file"],
        "scheduling": lambda row: f"beside two computing threads: {row['readers']}",
    }
    for kind, say in label.items():
        for row in record[kind]:
            rows.setdefault(say(row), []).append(row)
    lines = [
        "| four threads, reads of 864 KiB, but | GB/s | processor seconds per GB |",
        "|---|---|---|",
    ]
    for name, found in rows.items():
        computing = " (of the computing threads, too)" if found[0]["computed_per_second"] else ""
        lines.append(
            f"| {name} | {listed([one['gigabytes_per_second'] for one in found])} | "
            f"{listed([one['cpu_seconds_per_gigabyte'] for one in found])}{computing} |"
        )
    return [*lines, "", *waking_table(record)]


def waking_table(record: Record) -> list[str]:
    lines = [
        "| computing threads | us from submission to begin: median, 95th percentile | "
        "us from the last byte to whoever waits |",
        "|---|---|---|",
    ]
    for row in record["waking"]:
        lines.append(
            f"| {row['computing']} | {listed(row['submit_microseconds'], 0)} | "
            f"{listed(row['wake_microseconds'], 0)} |"
        )
    return lines


def uring_table(record: Record) -> list[str]:
    modes = {
        "p": "threads",
        "u": "io_uring",
        "f": "registered buffers and files",
        "d": "and deferred task work",
    }
    cells: dict[str, dict[str, list[str]]] = {}
    for row in record["rows"]:
        busy = row["compute"] > 0
        name = f"{row['depth']}{'' if row['huge'] else ', into 4 KiB pages'}"
        name += ", beside two computing threads" if busy else ""
        alone = row["mode"] == "n"
        value = f"{row['work']}" if alone else f"{row['gbps']:.2f}"
        value += f" ({row['work']})" if busy and not alone else ""
        cells.setdefault(name, {}).setdefault(row["mode"], []).append(value)
    lines = [
        f"| at once | {' | '.join(modes.values())} | computing alone |",
        "|---" * (len(modes) + 2) + "|",
    ]
    for name, found in cells.items():
        row_cells = [", ".join(found.get(mode, [])) for mode in (*modes, "n")]
        lines.append(f"| {name} | {' | '.join(row_cells)} |")
    return [
        "GB/s of random direct reads of 864 KiB by a program in C, two rounds; in brackets passes "
        "per second of two computing threads, which the last column has without any reads:",
        "",
        *lines,
    ]


def start_table(record: Record) -> list[str]:
    lines = [
        "| side | engine made, s | first decode begins, s | first logits, s |",
        "|---|---|---|---|",
    ]
    for name, runs in record["samples"].items():
        columns = [listed(column) for column in zip(*runs, strict=True)]
        lines.append(f"| {name} | {' | '.join(columns)} |")
    for name, runs in record.items():
        if name.startswith("under a control group"):
            seconds = listed([run["first_token_seconds"] for run in runs])
            lines.append(f"| {name} | | | {seconds} |")
    return lines


def prediction_table(record: Record) -> list[str]:
    lines = [
        "| side | ms per token (median) | speed | hits | read on demand, MB | waited, ms | read "
        "ahead per token |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, blocks in record["rounds"].items():
        seconds = statistics.median(s for block in blocks for s in block["token_seconds"])

        def mean(key: str, of: list[Record] = blocks) -> float:
            return float(statistics.mean(block[key] for block in of))

        lines.append(
            f"| {name} | {1e3 * seconds:.1f} | {record['verdict'][name]:.3f} | "
            f"{mean('hit_rate'):.3f} | {mean('read_bytes_per_token') / 1e6:.0f} | "
            f"{1e3 * mean('stall_seconds_per_token'):.1f} | {mean('read_ahead_per_token'):.1f} |"
        )
    return lines
