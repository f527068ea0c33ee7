"""One HTML file that shows an answer of `bench cache`: nothing is loaded from anywhere else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from localmoe.lab import svg
from localmoe.lab.conclusions import conclusions
from localmoe.lab.locality import busiest_share, popularity, reuse_gaps
from localmoe.planning.sizes import format_nbytes
from localmoe.prediction.trace import Trace

Answer = dict[str, Any]
FLOOR = "without a pattern"
_BUSIEST = 0.25


def hit_lines(answer: Answer) -> dict[str, list[tuple[float, float]]]:
    """Return found against size for each policy, and for routing without a pattern."""
    sizes = answer["sizes"]
    lines = {
        name: [
            (size["share"], size["policies"][name]["hit_rate"])
            for size in sizes
            if size["policies"][name]
        ]
        for name in sizes[0]["policies"]
    }
    return {**lines, FLOOR: [(size["share"], size["uniform_hit_rate"]) for size in sizes]}


def recall_bars(answer: Answer) -> dict[str, dict[str, float]]:
    """Return the recall of each predictor in each layer."""
    layers = [str(layer) for layer in answer["layers"]]
    return {
        name.replace("_", " "): dict(zip(layers, score["layer_recall"], strict=True))
        for name, score in answer["predictors"].items()
    }


def write_report(trace: Trace, answer: Answer) -> str:
    """Return the page."""
    page = Template((files("localmoe.lab") / "report.html").read_text(encoding="utf-8"))
    sections = list(_sections(trace, answer))
    links = "".join(f'<li><a href="#s{n}">{escape(s[0])}</a></li>' for n, s in enumerate(sections))
    subtitle = (
        f"{answer['tokens']} tokens, of which the last {answer['scored_tokens']} count; "
        f"{len(answer['layers'])} MoE layers that use {answer['experts_used']} of "
        f"{answer['experts_per_layer']} experts."
    )
    return page.substitute(
        title=escape(f"Where the experts of {answer['source']} are found"),
        subtitle=escape(subtitle),
        links=links,
        sections="".join(
            f'<section id="s{n}" aria-labelledby="h{n}"><h2 id="h{n}">{escape(heading)}</h2>'
            f"{body}</section>"
            for n, (heading, body) in enumerate(sections)
        ),
    )


def _sections(trace: Trace, answer: Answer) -> Iterator[tuple[str, str]]:
    yield "What the figures say", _list(conclusions(answer))
    if "simulation" in answer:
        yield "A machine that is only described", _simulation(answer)
    yield "Hits, by policy and size", _hits(answer)
    shares = popularity(trace)
    rows = {str(n): values.tolist() for n, values in zip(trace.layers, shares, strict=True)}
    said = (
        f"The busiest {_BUSIEST:.0%} of each layer's experts get "
        f"{busiest_share(shares, _BUSIEST):.0%} of the uses. A row is a layer; the darker a cell, "
        "the more tokens use the expert."
    )
    heat = svg.heat_map(rows, "Share of tokens that use each expert, by layer", "expert")
    yield "How popular each expert is", _paragraph(said) + _figure(heat)
    in_order = {str(n): sorted(values, reverse=True) for n, values in rows.items()}
    ranked = svg.heat_map(in_order, "The same, the most popular first", "rank in its layer")
    yield "The same, in order of popularity", _figure(ranked)
    gaps = reuse_gaps(trace)
    bars = svg.bar_chart({"uses": gaps}, "How soon an expert is used again", "share of uses")
    said = "Tokens since the same expert was last used in its layer; 1 is the very next token."
    yield "How soon an expert is used again", (
        _paragraph(said) + _figure(bars) + _table("gap", {k: [f"{v:.1%}"] for k, v in gaps.items()},
        ["share"])
    )  # fmt: skip
    yield "How well experts can be told in advance", _predictors(answer)
    if "acting" in answer:
        yield "What reading ahead would give", _acting(answer["acting"])


def _hits(answer: Answer) -> str:
    lines = hit_lines(answer)
    columns = [f"{size['share']:.0%}: {size['slots']} slots" for size in answer["sizes"]]
    rows = {}
    for name, points in lines.items():
        found = dict(points)
        rows[name] = [
            f"{found[size['share']]:.1%}" if size["share"] in found else "-"
            for size in answer["sizes"]
        ]
    chart = svg.line_chart(lines, "Hits against size of the cache", "share of experts", "found")
    return _figure(chart) + _table("policy", rows, columns)


def _predictors(answer: Answer) -> str:
    scores = answer["predictors"]
    used = answer["experts_used"]
    ranks = sorted({0, used // 2, used - 1})
    rows = {
        name.replace("_", " "): [
            f"{score['recall']:.1%}",
            *(f"{score['rank_precision'][rank]:.1%}" for rank in ranks),
        ]
        for name, score in scores.items()
    }
    bars = svg.bar_chart(recall_bars(answer), "Recall by layer", "recall")
    columns = ["recall", *(f"#{rank + 1} true" for rank in ranks)]
    return _figure(bars) + _table("guessed from", rows, columns)


def _acting(acting: Answer) -> str:
    rows = {
        name.replace("_", " "): [
            f"{one['speed_ratio']:.2f}",
            f"{one['reads_ahead_per_token']:.1f}",
            "-" if one["useful_share"] is None else f"{one['useful_share']:.0%}",
            one["why"],
        ]
        for name, one in acting["predictors"].items()
    }
    columns = ["times the speed", "read ahead per token", "used", "why"]
    return _table("guessed from", rows, columns) + _list(acting["assumptions"])


def _simulation(answer: Answer) -> str:
    simulation = answer["simulation"]
    columns = [f"{size['share']:.0%}: {format_nbytes(size['bytes'])}" for size in answer["sizes"]]
    rows = {
        name: [
            f"{size['policies'][name]['tokens_per_second']:.2f}" if size["policies"][name] else "-"
            for size in answer["sizes"]
        ]
        for name in answer["sizes"][0]["policies"]
    }
    said = _paragraph("Tokens per second, by policy and by how much of the experts is in memory:")
    return said + _table("policy", rows, columns) + _list(simulation["assumptions"])


def _table(corner: str, rows: Mapping[str, Sequence[str]], columns: Sequence[str]) -> str:
    """Return a table that scrolls by itself, with a keyboard, too."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in (corner, *columns))
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(
            f"<td{' class=why' if column == 'why' else ''}>{escape(cell)}</td>"
            for column, cell in zip(columns, cells, strict=True)
        )
        + "</tr>"
        for name, cells in rows.items()
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(corner)}, a table">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _figure(chart: str) -> str:
    return f"<figure>{chart}</figure>"


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _list(sentences: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(said)}</li>' for said in sentences)}</ul>"
