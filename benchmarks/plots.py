"""Draw the pictures of docs/limits.md from the newest records of limit.py.

    pip install -e .[plots]
    python benchmarks/plots.py [--data DIRECTORY] [--out docs/images]

`limit-fractions.svg`: the fraction of the limit, case by case, before and now, against what was
published. `limit-where.svg`: where a token's time goes at 3 GiB. `limit-tokens.svg`: the time of
each token, so that a median hides nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from manifest import DATA, REPOSITORY
from matplotlib import pyplot as plt

PUBLISHED = (0.16, 0.61)
"""The least and the most of the limit that published systems reach, by their own figures."""
BEFORE, NOW = "#b8b8b8", "#1f6f8b"
PARTS = {"compute": "#1f6f8b", "stall": "#d1495b", "callback": "#edae49", "rest": "#8d96a3"}
LABELS = {
    "compute": "computing",
    "stall": "waiting for experts",
    "callback": "the callback itself",
    "rest": "the rest",
}
FRACTION_PARTS = ("decode", "demo", "trace", "prefill")
Record = dict[str, Any]


def newest(folder: Path, name: str) -> Record | None:
    found = sorted(folder.glob(f"????-??-??-{name}.json"))
    return json.loads(found[-1].read_text()) if found else None


def fractions(record: Record | None) -> dict[str, dict[str, Any]]:
    """Return median and extremes of every case that was measured."""
    cases: dict[str, dict[str, Any]] = {}
    for part in FRACTION_PARTS:
        found = (record or {}).get(part, {}).get("fraction")
        if not found:
            continue
        if "median" in found:
            cases[f"{part}, 3 GiB"] = found
        else:
            cases |= {f"{part}, {name}": values for name, values in found.items()}
    return cases


def draw_fractions(before: Record | None, now: Record, path: Path) -> None:
    new, old = fractions(now), fractions(before)
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(new) + 1.4))
    axes.axvspan(*PUBLISHED, color="#f3e3c3", label="published systems, 0.16 to 0.61")
    axes.axvline(1, color="black", linewidth=1, label="the limit")
    for row, (name, values) in enumerate(new.items()):
        error = [[values["median"] - values["least"]], [values["most"] - values["median"]]]
        height = 0.36 if name in old else 0.6
        shift = 0.19 if name in old else 0
        label = "now" if row == 0 else None
        axes.barh(row + shift, values["median"], height, xerr=error, color=NOW, label=label)
        if name in old:
            label = "before" if row == 0 else None
            axes.barh(row - 0.19, old[name]["median"], 0.36, color=BEFORE, label=label)
        axes.text(0.01, row + shift, f"{values['median']:.2f}", va="center", color="white", size=8)
    axes.set_yticks(range(len(new)), list(new))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.05)
    axes.set_xlabel("fraction of the limit: median, least and most of all rounds")
    axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=4, frameon=False, fontsize=8)
    save(figure, path)


def draw_where(before: Record | None, now: Record, path: Path) -> None:
    rows = {name: record for name, record in (("before", before), ("now", now)) if record}
    rows = {name: record["where"] for name, record in rows.items() if "where" in record}
    figure, axes = plt.subplots(figsize=(8, 0.7 * len(rows) + 1.3))
    for row, where in enumerate(rows.values()):
        left = 0.0
        seconds = where["seconds_per_token"]
        for part, color in PARTS.items():
            # Older records are of a callback in Python, and call it so.
            ms = 1e3 * seconds["python" if part not in seconds else part]
            axes.barh(row, ms, 0.6, left, color=color, label=LABELS[part] if row == 0 else None)
            if ms > 3:
                middle = left + ms / 2
                axes.text(middle, row, f"{ms:.1f}", ha="center", va="center", size=8, color="white")
            left += ms
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds of one token, 3 GiB of 8.45 GB")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False, fontsize=8)
    save(figure, path)


def draw_tokens(now: Record, path: Path) -> None:
    """Each token of the first round, streamed and with all experts in memory."""
    figure, axes = plt.subplots(figsize=(8, 2.6))
    raw = now["decode"]["raw"][0]
    for (name, answer), color in zip(
        ((n, a) for n, a in raw.items() if "extra" in a), ("#d1495b", NOW, "#8d96a3"), strict=True
    ):
        ms = [1e3 * seconds for seconds in answer["extra"]["token_seconds"]]
        label = "all in memory" if name == "resident" else name
        axes.plot(ms, color=color, label=label, linewidth=1.2)
    axes.set_ylim(0)
    axes.set_xlabel("token")
    axes.set_ylabel("milliseconds")
    axes.legend(loc="lower right", ncols=3, frameon=False, fontsize=8)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # No date: the same record gives the same file.
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "images")
    parser.add_argument("--kind", choices=("svg", "png"), default="svg")
    given = parser.parse_args()
    mpl.use("Agg")
    # Text stays text, and ids do not depend on chance.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "limit"})
    mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    before, now = newest(given.data, "limit-before"), newest(given.data, "limit")
    now = now or before
    if now is None:
        raise SystemExit(f"no record of limit.py in {given.data}")
    before = None if now is before else before
    if fractions(now):
        draw_fractions(before, now, given.out / f"limit-fractions.{given.kind}")
    if "where" in now:
        draw_where(before, now, given.out / f"limit-where.{given.kind}")
    if "decode" in now:
        draw_tokens(now, given.out / f"limit-tokens.{given.kind}")


if __name__ == "__main__":
    main()
