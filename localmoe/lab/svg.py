"""Charts as SVG text, coloured by the page around them: light or dark, and as wide as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil

WIDTH, HEIGHT = 720, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 44
_MOST_CELLS = 64
"""Columns of a heat map: beyond that, neighbours are drawn as their mean."""
STYLES = {"belady": " dashed", "without a pattern": " dotted"}
"""Lines that are no policy's."""
Points = Sequence[tuple[float, float]]


def line_chart(lines: Mapping[str, Points], title: str, x_label: str, y_label: str) -> str:
    """Draw lines of shares, both axes from 0 to 1."""
    parts = _axes(x_label, y_label)
    for at, (name, points) in enumerate(lines.items()):
        path = " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in points)
        style = STYLES.get(name, "")
        parts.append(f'<polyline class="line c{at % 10}{style}" points="{path}"/>')
        for x, y in points:
            label = escape(f"{name}: {y:.1%} at {x:.0%}")
            parts.append(
                f'<circle class="dot c{at % 10}" cx="{_x(x):.1f}" cy="{_y(y):.1f}" r="3.5">'
                f"<title>{label}</title></circle>"
            )
    return _svg(title, parts) + legend(list(lines))


def bar_chart(groups: Mapping[str, Mapping[str, float]], title: str, y_label: str) -> str:
    """Draw groups of bars from 0 to 1: by name of the bar, its height in each group's place."""
    names = list(groups)
    places = list(dict.fromkeys(place for bars in groups.values() for place in bars))
    parts = _axes("", y_label, x_ticks=False)
    room = (WIDTH - _LEFT - _RIGHT) / max(1, len(places))
    width = 0.8 * room / max(1, len(names))
    every = ceil(len(places) / 16)
    for at, place in enumerate(places):
        x = _LEFT + at * room
        if at % every == 0:
            parts.append(_text(x + room / 2, HEIGHT - _BOTTOM + 18, place, "middle"))
        for of, name in enumerate(names):
            value = groups[name].get(place, 0.0)
            label = escape(f"{name}, {place}: {value:.1%}")
            parts.append(
                f'<rect class="bar c{of % 10}" x="{x + 0.1 * room + of * width:.1f}" '
                f'y="{_y(value):.1f}" width="{width:.1f}" height="{_y(0) - _y(value):.1f}">'
                f"<title>{label}</title></rect>"
            )
    return _svg(title, parts) + (legend(names) if len(names) > 1 else "")


def heat_map(rows: Mapping[str, Sequence[float]], title: str, x_label: str) -> str:
    """Draw a cell for each value, the darker the higher; a row for each name."""
    most = max((max(values) for values in rows.values()), default=1.0) or 1.0
    merged = {name: _merged(values) for name, values in rows.items()}
    columns = max(len(values) for values in merged.values())
    tall = max(6.0, min(20.0, 420 / len(rows)))
    wide = (WIDTH - _LEFT - _RIGHT) / columns
    every = ceil(14 / tall)
    parts = [_text((WIDTH + _LEFT) / 2, _TOP + tall * len(rows) + 22, x_label, "middle")]
    for at, (name, values) in enumerate(merged.items()):
        y = _TOP + at * tall
        if at % every == 0:
            parts.append(_text(_LEFT - 6, y + tall * 0.8, name, "end"))
        for column, value in enumerate(values):
            shade = 0.04 + 0.96 * value / most
            parts.append(
                f'<rect class="cell" x="{_LEFT + column * wide:.1f}" y="{y:.1f}" '
                f'width="{wide:.2f}" height="{tall:.2f}" opacity="{shade:.3f}">'
                f"<title>{escape(name)}: {value:.1%}</title></rect>"
            )
    return _svg(title, parts, _TOP + tall * len(rows) + 34)


def legend(names: Sequence[str]) -> str:
    """Say which colour is which."""
    items = "".join(
        f'<li><span class="key c{at % 10}{STYLES.get(name, "")}"></span>{escape(name)}</li>'
        for at, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def _merged(values: Sequence[float]) -> list[float]:
    size = ceil(len(values) / _MOST_CELLS)
    cut = [values[start : start + size] for start in range(0, len(values), size)]
    return [sum(piece) / len(piece) for piece in cut]


def _x(share: float) -> float:
    return _LEFT + share * (WIDTH - _LEFT - _RIGHT)


def _y(share: float) -> float:
    return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)


def _axes(x_label: str, y_label: str, *, x_ticks: bool = True) -> list[str]:
    parts = [_text(_LEFT, _TOP - 1, y_label, "start")]
    for step in range(5):
        share = step / 4
        y = _y(share)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y}" x2="{WIDTH - _RIGHT}" y2="{y}"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{share:.0%}", "end"))
        if x_ticks:
            parts.append(_text(_x(share), HEIGHT - _BOTTOM + 18, f"{share:.0%}", "middle"))
    parts.append(_text((WIDTH + _LEFT) / 2, HEIGHT - 6, x_label, "middle"))
    return parts


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, parts: Sequence[str], height: float = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 -6 {WIDTH} {height + 6:.0f}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
