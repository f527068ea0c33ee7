"""Write the tables of docs/measurements/README.md and docs/limits.md from the newest records.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cache_tables import (
    eviction_table,
    prediction_table,
    reads_table,
    start_table,
    uring_table,
    warm_start_table,
)
from limit_tables import layouts_table, limit_cases, limit_table, where_table
from manifest import DATA
from table_words import said, samples

PAGE = DATA.parent / "README.md"
LIMITS_PAGE = DATA.parents[1] / "limits.md"
QUIET_LOAD = 0.5
"""A load average above this is work of others: nothing of ours runs before the first entry."""
Record = dict[str, Any]


def speeds(answers: list[dict[str, Any]]) -> list[float]:
    return [answer["tokens_per_second"] for answer in answers if "tokens_per_second" in answer]


def streaming_table(record: Record) -> list[str]:
    turns, alone, verdict = record["in_turn"], record["alone"], record["verdict"]
    peer = turns["peer"]
    return [
        "| side | tok/s (median) | rounds |",
        "|---|---|---|",
        f"| localmoe | {samples(speeds(turns['extra']['rounds']))} |",
        f"| llama.cpp, mmap | {samples(speeds(peer['rounds']))} |",
        "",
        f"Ratio {turns['ratio']:.0f}. localmoe alone: {alone['tokens_per_second']:.2f} tok/s, "
        f"{alone['hit_rate']:.1%} of experts found in memory, "
        f"{alone['bytes_read_per_token'] / 1e6:.0f} MB read and "
        f"{1e3 * alone['stall_seconds_per_token']:.0f} ms waited per token; device "
        f"{alone['device_bytes_per_second'] / 1e9:.2f} GB/s, all experts in memory "
        f"{alone['resident_tokens_per_second']:.2f} tok/s, so {alone['fraction_of_limit']:.2f} of "
        f"the limit was reached. Peak {alone['group_peak_mib']} MiB of "
        f"{alone['budget_bytes'] >> 20} MiB, loaded in {alone['load_seconds']:.1f} s. Logits equal "
        f"to llama.cpp's: {said(verdict['logits_equal_peer'])}; to a run with all experts in "
        f"memory: {said(verdict['logits_equal_resident'])}.",
    ]


def resident_table(record: Record) -> list[str]:
    lines = [
        "| model and peer's way of waiting | ratio | localmoe | llama.cpp | ratio per round |",
        "|---|---|---|---|---|",
    ]
    for name, answer in record.items():
        if isinstance(answer, dict) and "ratios" in answer:
            ratios = ", ".join(f"{ratio:.2f}" for ratio in answer["ratios"])
            lines.append(
                f"| {name} | {answer['ratio']:.3f} | {answer['tokens_per_second']:.1f} | "
                f"{answer['peer']['tokens_per_second']:.1f} | {ratios} |"
            )
    return lines


def spin_table(record: Record) -> list[str]:
    lines = [
        "| GOMP_SPINCOUNT | tok/s, quiet | rounds | tok/s beside a busy process | rounds |",
        "|---|---|---|---|---|",
    ]
    for count, states in record["samples"].items():
        lines.append(f"| {count} | {samples(states['quiet'])} | {samples(states['neighbour'])} |")
    return lines


def callback_table(record: Record) -> list[str]:
    lines = [
        "| memory | tok/s, compiled | rounds | tok/s, in Python | rounds |",
        "|---|---|---|---|---|",
    ]
    for mib, sides in record["samples"].items():
        found = f"{samples(sides['compiled'])} | {samples(sides['Python'])}"
        lines.append(f"| {int(mib) >> 10} GiB | {found} |")
    return [*lines, "", f"Logits equal: {said(record['logits_equal'])}."]


def soak_table(record: Record) -> list[str]:
    lines = [
        "| model | tokens | experts in memory | layers in passes | peak, MiB of budget | growth of "
        "memory, KiB: in use, closed | calls compared | wrong |",
        "|---|---|---|---|---|---|---|---|",
    ]
    totals: Counter[str] = Counter()
    for name, answer in record["models"].items():
        slots = [opening["slots"] for opening in answer["openings"]]
        grown = [answer[kind]["rss_bytes"]["grown"] for kind in ("growth", "growth_when_closed")]
        replay = answer["replay"]
        lines.append(
            f"| {name} | {answer['tokens']} | {min(slots)} to {max(slots)} of "
            f"{answer['experts']} | {answer['stats']['split_layers']} | "
            f"{answer['group_peak_mib']} of {answer['budget_mib']} | "
            f"{', '.join(f'{n / 1024:.0f}' for n in grown)} | {replay['calls']} in "
            f"{replay['histories']} histories | {len(replay['wrong'])} |"
        )
        totals.update(answer["done"])
    done = ", ".join(f"{count} {name}" for name, count in sorted(totals.items()))
    kept = all(v for claim, v in record["verdict"].items() if claim.endswith("_steady"))
    return [*lines, "", f"{done}. Memory, threads and file descriptors steady: {said(kept)}."]


def passes_table(record: Record) -> list[str]:
    lines = [
        "| side | chunk | tok/s (median) | rounds | read, GB | waited, s | moving rows, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for side, rounds in record["rounds"].items():
        some, speed = rounds[0], samples([r["tokens_per_second"] for r in rounds])
        lines.append(
            f"| {side} | {some['chunk_tokens']} | {speed} | {some['read_bytes'] / 1e9:.1f} "
            f"| {some['stall_seconds']:.1f} | {some['split_seconds']:.2f} |"
        )
    return [
        f"{record['slots']} slots, {record['experts_used']} of 128 experts per layer and token, "
        f"{record['tokens']} tokens: ratio {record['verdict']['ratio']:.2f}.",
        "",
        *lines,
    ]


def origin(record: Record, path: Path, page: Path) -> str:
    """Say where and when a table was measured, with a link from its page to the record."""
    raw = f"Raw: [data/{path.name}]({path.relative_to(page.parent)})."
    if "machine" not in record:  # put together by hand
        return f"{record['time']}; {record['what']}. {raw}"
    machine, entry = record["machine"], record["entry"]
    load = entry["load_average"][0]
    state = "clean" if not record["changed_since_commit"] else "with changes"
    return (
        f"Commit {record['commit'][:12]} ({state}), {record['time']}; {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB, "
        f"{machine['system']}; load average at the start {load:.1f}"
        + (": **other work ran on the machine meanwhile**. " if load > QUIET_LOAD else ". ")
        + raw
    )


TABLES: dict[str, Callable[[Record], list[str]]] = {
    "streaming-vs-mmap": streaming_table,
    "resident-vs-llama": resident_table,
    "spin": spin_table,
    "callback": callback_table,
    "prefill-passes-k1": passes_table,
    "prefill-passes-k8": passes_table,
    "soak": soak_table,
    "eviction": eviction_table,
    "warm-start": warm_start_table,
    "warm-start-3gib": warm_start_table,
    "reads": reads_table,
    "reads-uring": uring_table,
    "start": start_table,
    "prediction": prediction_table,
}
LIMITS_TABLES: dict[str, tuple[str, Callable[[Record], list[str]]]] = {
    "limit": ("limit", limit_table),
    "limit-where": ("limit", where_table),
    "limit-before": ("limit-before", limit_cases),
    "layouts": ("layouts", layouts_table),
}
"""By the name of the place in docs/limits.md: whose record, and what of it."""


def main() -> None:
    rewrite(PAGE, {name: (name, table) for name, table in TABLES.items()})
    rewrite(LIMITS_PAGE, LIMITS_TABLES)


def rewrite(page: Path, tables: dict[str, tuple[str, Callable[[Record], list[str]]]]) -> None:
    """Put each table between its two marks."""
    text = page.read_text()
    for name, (benchmark, table) in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        found = sorted(DATA.glob(f"????-??-??-{benchmark}.json"))
        if not found:
            print(f"no record of {benchmark} yet", file=sys.stderr)
            continue
        record = json.loads(found[-1].read_text())
        lines = [*table(record), "", origin(record, found[-1], page)]
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = before + begin + "\n".join(lines) + "\n" + end + after
    page.write_text(text)


if __name__ == "__main__":
    main()
