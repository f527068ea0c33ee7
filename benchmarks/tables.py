"""Write the tables of docs/measurements/README.md and docs/limits.md from the newest records.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from manifest import DATA

PAGE = DATA.parent / "README.md"
LIMITS_PAGE = DATA.parents[1] / "limits.md"
QUIET_LOAD = 0.5
"""A load average above this is work of others: nothing of ours runs before the first entry."""
Record = dict[str, Any]


def samples(values: list[float]) -> str:
    """Return a median and all it was taken from."""
    raw = ", ".join(f"{value:.2f}" for value in values)
    return f"{statistics.median_low(values):.2f} | {raw}"


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


def limit_table(record: Record) -> list[str]:
    lines = ["| criterion | measured | wanted | holds |", "|---|---|---|---|"]
    for name, line in record["verdict"].items():
        value = "not measured" if line["value"] is None else f"{line['value']:.2f}"
        if name.startswith("prefill: times"):
            ratios = record["prefill"]["ratios"]
            possible = statistics.median(one["possible_ratio"] for one in ratios)
            value += f" (at the limit: {possible:.2f})"
            if any(one["at_least"] for one in ratios):
                value = f"at least {value}"
        lines.append(f"| {name} | {value} | {line['wanted']} | {said(line['holds'])} |")
    return [*lines, "", *limit_cases(record)]


def limit_cases(record: Record) -> list[str]:
    """Return the figures behind the fractions: medians of all rounds, and every fraction."""
    lines = [
        "| case | ms per token | reading | computing | waited | hits | fraction, rounds | by "
        "`bench decode` itself | if read and computed in turn |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for part in ("decode", "demo", "trace"):
        for name, rounds in record.get(part, {}).get("figures", {}).items():
            middle = {
                key: statistics.median(one[key] for one in rounds)
                for key, value in rounds[0].items()
                if isinstance(value, float)
            }
            ms = [
                f"{1e3 * middle[key]:.1f}"
                for key in ("token_seconds", "read_seconds", "compute_seconds", "stall_seconds")
            ]
            fractions = samples([one["fraction"] for one in rounds]).replace(" | ", ": ")
            lines.append(
                f"| {part}, {name} | {' | '.join(ms)} | {middle['hit_rate']:.1%} | {fractions} | "
                f"{middle['own_fraction']:.2f} | {middle['fraction_if_added']:.2f} |"
            )
    return lines


def where_table(record: Record) -> list[str]:
    if "where" not in record:
        return ["Not measured."]
    where = record["where"]
    parts = where["seconds_per_token"]
    some = [one["where"] for one in where["raw"]]

    def median(key: str) -> float:
        return statistics.median(one[key] for one in some)

    return [
        "| part of a token | ms | share |",
        "|---|---|---|",
        *(
            f"| {name} | {1e3 * value:.1f} | {value / sum(parts.values()):.0%} |"
            for name, value in parts.items()
        ),
        "",
        f"Per token: {median('questions'):.0f} questions "
        f"({1e3 * median('question_seconds'):.1f} ms inside), {median('stops'):.0f} stops "
        f"({1e3 * median('stop_seconds'):.1f} ms inside), {median('misses'):.0f} experts read; "
        f"the reading threads used {1e3 * median('reader_cpu_seconds'):.1f} ms of processor time, "
        f"the whole process {1e3 * median('process_cpu_seconds'):.0f} ms.",
    ]


def layouts_table(record: Record) -> list[str]:
    lines = [
        "| layout | ms per token | prefill, tok/s | ms per active expert of all layers | share of "
        "experts in a token |",
        "|---|---|---|---|---|",
    ]
    for name, decode in record["decode_token_seconds"].items():
        active = record["by_active_experts"][name]
        lines.append(
            f"| {name} | {1e3 * decode['median']:.1f} | "
            f"{record['prefill_tokens_per_second'][name]['median']:.0f} | "
            f"{1e3 * active['seconds_per_active_expert']:.2f} | {active['share_of_experts']:.0%} |"
        )
    one = record["repack_one_expert"]
    return [
        *lines,
        "",
        f"{record['layers']} layers, all in memory. Logits equal to the last bit: "
        f"{said(record['logits_equal'])}; the largest difference is "
        f"{record['largest_difference'] / record['deviation_of_logits']:.2f} of the logits' "
        f"deviation. One expert takes {1e3 * one['seconds']:.2f} ms to repack on one core, "
        f"{one['bytes_per_second'] / 1e9:.1f} GB/s.",
    ]


def said(value: bool | None) -> str:
    return {True: "yes", False: "NO", None: "not measured"}[value]


def origin(record: Record, path: Path, page: Path) -> str:
    """Say where and when a table was measured, with a link from its page to the record."""
    machine, entry = record["machine"], record["entry"]
    load = entry["load_average"][0]
    state = "clean" if not record["changed_since_commit"] else "with changes"
    return (
        f"Commit {record['commit'][:12]} ({state}), {record['time']}; {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB, "
        f"{machine['system']}; load average at the start {load:.1f}"
        + (": **other work ran on the machine meanwhile**. " if load > QUIET_LOAD else ". ")
        + f"Raw: [data/{path.name}]({path.relative_to(page.parent)})."
    )


TABLES: dict[str, Callable[[Record], list[str]]] = {
    "streaming-vs-mmap": streaming_table,
    "resident-vs-llama": resident_table,
    "spin": spin_table,
    "prefill-passes-k1": passes_table,
    "prefill-passes-k8": passes_table,
    "soak": soak_table,
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
