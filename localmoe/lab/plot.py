"""The pictures of the report as one PNG. Needs matplotlib: the extra `plots`."""

from __future__ import annotations

from typing import Any, BinaryIO

from localmoe.errors import SettingsError
from localmoe.lab.locality import popularity, reuse_gaps
from localmoe.lab.report import FLOOR, hit_lines, recall_bars
from localmoe.prediction.trace import Trace

_DASHED = {"belady": "black", FLOOR: "gray"}


def write_plot(trace: Trace, answer: dict[str, Any], file: BinaryIO) -> None:
    """Draw hits, popularity, reuse and recall. Raises SettingsError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingsError(
            "--plot needs matplotlib: pip install 'localmoe[plots]'. --report needs nothing."
        ) from error
    figure = Figure(figsize=(14, 10), layout="constrained")
    figure.suptitle(f"{answer['source']}: {answer['scored_tokens']} tokens scored")
    hits, heat, reuse, recall = figure.subplots(2, 2).flat
    for name, points in hit_lines(answer).items():
        style = {"linestyle": "--", "color": _DASHED[name]} if name in _DASHED else {}
        hits.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name, **style)
    hits.set(title="Found, by size of the cache", xlabel="share of experts", ylabel="found")
    hits.legend(fontsize="small")
    picture = heat.imshow(popularity(trace), aspect="auto", cmap="viridis")
    heat.set(title="Share of tokens that use each expert", xlabel="expert", ylabel="MoE layer")
    figure.colorbar(picture, ax=heat)
    gaps = reuse_gaps(trace)
    reuse.bar(list(gaps), list(gaps.values()))
    reuse.set(title="Tokens until an expert is used again", ylabel="share of uses")
    reuse.tick_params(axis="x", rotation=45)
    for name, layers in recall_bars(answer).items():
        recall.plot(list(layers), list(layers.values()), marker=".", label=name)
    recall.set(title="Recall of guesses, by layer", xlabel="MoE layer", ylabel="recall")
    recall.tick_params(axis="x", rotation=90)
    recall.legend(fontsize="small")
    figure.savefig(file, format="png", dpi=110)
