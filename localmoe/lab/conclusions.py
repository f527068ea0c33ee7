"""Sentences that the figures of a grid carry."""

from __future__ import annotations

from typing import Any

from localmoe.lab.ranked_replay import BELADY

Answer = dict[str, Any]
_SAME = 0.005
"""Hit rates that differ by less are called alike."""


def conclusions(answer: Answer) -> list[str]:
    """Return what an answer of `bench cache` shows, a sentence each."""
    found = [_of_size(size) for size in answer["sizes"] if _online(size)]
    acting = answer.get("acting")
    if acting:
        found.append(_of_acting(acting))
    return found


def _online(size: Answer) -> dict[str, float]:
    return {
        name: figures["hit_rate"]
        for name, figures in size["policies"].items()
        if figures and name != BELADY
    }


def _of_size(size: Answer) -> str:
    """Say which policy is best at a size, what Belady leaves, and which are worse than chance."""
    rates = _online(size)
    most = max(rates.values())
    best = [name for name, rate in rates.items() if rate >= most - _SAME]
    bound, floor = size["policies"][BELADY]["hit_rate"], size["uniform_hit_rate"]
    said = (
        f"With {size['share']:.0%} of the experts in memory, {_listed(best)} "
        f"{'finds' if len(best) == 1 else 'find'} {most:.1%}; Belady's bound is {bound:.1%}: "
        f"{100 * (bound - most):.1f} points are left."
    )
    worse = [name for name, rate in rates.items() if rate < floor - _SAME]
    if worse:
        said += f" Worse than routing without a pattern ({floor:.1%}): {_listed(worse)}."
    return said


def _of_acting(acting: Answer) -> str:
    """Say what reading ahead on the best guesses would give."""
    ratios = {
        name: figures["speed_ratio"]
        for name, figures in acting["predictors"].items()
        if name not in ("nothing", "perfect")
    }
    if not ratios:
        return "No guesses were recorded: nothing is known of reading ahead."
    best = max(ratios, key=lambda name: ratios[name])
    perfect = acting["predictors"]["perfect"]["speed_ratio"]
    return (
        f"Reading ahead on guesses, with {acting['slots']} slots on {acting['device']}: at best "
        f"{ratios[best]:.2f} times the speed ({best.replace('_', ' ')}), at worst "
        f"{min(ratios.values()):.2f}; if every guess were true, {perfect:.2f}. "
        f"{acting['predictors'][best]['why']}"
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
