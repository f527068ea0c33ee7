"""Tables of docs/limits.md: what limit.py and layouts.py recorded."""

from __future__ import annotations

import statistics
from typing import Any

from table_words import said, samples

Record = dict[str, Any]


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
    for table in (limit_cases, prefill_rounds, starts, busy):
        more = table(record)
        if more:
            lines += ["", *more]
    return lines


def limit_cases(record: Record) -> list[str]:
    """Return the figures behind the fractions: medians of all rounds, and every fraction."""
    lines = [
        "| case | ms per token | reading | computing | waited | hits | fraction, rounds | by "
        "`bench decode` itself | if read and computed in turn |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows = len(lines)
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
    return lines if len(lines) > rows else []


def prefill_rounds(record: Record) -> list[str]:
    prefill = record.get("prefill")
    if not prefill:
        return []
    lines = [
        f"| prefill of {prefill['tokens']:,} tokens, round | s | reading | computing | waited | "
        "fraction | llama.cpp's mmap, s | its chunk |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number, (one, raw) in enumerate(
        zip(prefill["figures"], prefill["raw"], strict=True), start=1
    ):
        seconds = [
            f"{one[key]:.1f}"
            for key in ("seconds", "read_seconds", "compute_seconds", "stall_seconds")
        ]
        peer = f"{raw['peer']['seconds']:.1f}" if "seconds" in raw["peer"] else "past its deadline"
        lines.append(
            f"| {number} | {' | '.join(seconds)} | {one['fraction']:.2f} | {peer} | "
            f"{raw['peer']['chunk_tokens']} |"
        )
    return lines


def starts(record: Record) -> list[str]:
    if "start" not in record:
        return []
    lines = [
        "| cold start, prompt tokens | s to the first token (median), rounds | bound, s, rounds | "
        "share of the bound |",
        "|---|---|---|---|",
    ]
    for tokens, rounds in record["start"]["figures"].items():
        seconds = samples([one["first_token_seconds"] for one in rounds]).replace(" | ", ": ")
        bounds = ", ".join(f"{one['bound_seconds']:.2f}" for one in rounds)
        share = record["start"]["share_of_bound"][tokens]["median"]
        lines.append(f"| {tokens} | {seconds} | {bounds} | {share:.2f} |")
    return lines


def busy(record: Record) -> list[str]:
    if "busy" not in record:
        return []
    speeds = record["busy"]["tokens_per_second"]
    return [
        "| decoding | tok/s (median) | rounds |",
        "|---|---|---|",
        f"| alone | {samples(speeds['alone'])} |",
        f"| beside a busy core | {samples(speeds['beside'])} |",
    ]


def where_table(record: Record) -> list[str]:
    if "where" not in record:
        return ["Not measured."]
    where = record["where"]
    parts = where["seconds_per_token"]
    some = [one["where"] for one in where["raw"]]

    def median(key: str) -> float:
        return float(statistics.median(one[key] for one in some))

    return [
        "| part of a token | ms | share |",
        "|---|---|---|",
        *(
            f"| {name} | {1e3 * value:.1f} | {value / sum(parts.values()):.0%} |"
            for name, value in parts.items()
        ),
        "",
        f"Per token: {median('questions'):.0f} questions "
        f"and {median('stops'):.0f} stops ({1e3 * median('callback_seconds'):.1f} ms inside), "
        f"{median('misses'):.0f} experts read; "
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
