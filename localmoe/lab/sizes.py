"""Sizes of caches and names of policies, as people write them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from localmoe.cache.policy_table import POLICIES
from localmoe.errors import SettingsError
from localmoe.lab.grid import PER_LAYER
from localmoe.lab.layout import least_slots
from localmoe.prediction.trace import Trace

_SIZE = re.compile(r"(\d+(?:\.\d+)?)(%?)", re.ASCII)
_MOST_NAMED = 64


def parse_slots(text: str, trace: Trace) -> tuple[int, ...]:
    """Return numbers of slots, rising, of a list such as 5%,10%,96. Raises SettingsError."""
    total, least = trace.n_experts_total, least_slots(trace)
    found = set()
    for item in _items(text):
        match = _SIZE.fullmatch(item)
        number = float(match.group(1)) if match else 0.0
        slots = int(number / 100 * total) if match and match.group(2) else int(number)
        if not match or not least <= slots <= total:
            raise SettingsError(
                f"{item} is no size of a cache here: wanted is a share, such as 25%, or a number "
                f"of slots, from {least} (what a step needs at once) to {total} (all experts)"
            )
        found.add(slots)
    return tuple(sorted(found))


def parse_policies(text: str) -> tuple[str, ...]:
    """Return names of policies of a list such as lru,lfu/layer. Raises SettingsError."""
    names = tuple(dict.fromkeys(_items(text)))
    unknown: Sequence[str] = [n for n in names if n.removesuffix(PER_LAYER) not in POLICIES]
    if unknown:
        raise SettingsError(
            f"there is no policy {', '.join(unknown)}: there are {', '.join(POLICIES)}, each also "
            f"with {PER_LAYER} behind it, for slots of each layer's own"
        )
    return names


def _items(text: str) -> list[str]:
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not 1 <= len(items) <= _MOST_NAMED:
        raise SettingsError(f"{text!r} names {len(items)} things: wanted are 1 to {_MOST_NAMED}")
    return items
