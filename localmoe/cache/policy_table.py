"""The policies by their names, as settings and the command line know them."""

from __future__ import annotations

from localmoe.cache.frequency import Lfu, Lrfu, Static
from localmoe.cache.least_stale import LeastStale
from localmoe.cache.next_use import NextUse
from localmoe.cache.policies import Lru, MakePolicy
from localmoe.cache.segments import Slru, TwoQueue
from localmoe.settings import PolicyName

POLICIES: dict[PolicyName, MakePolicy] = {
    "next-use": NextUse,
    "lru": Lru,
    "lfu": Lfu,
    "lrfu": Lrfu,
    "slru": Slru,
    "two-queue": TwoQueue,
    "least-stale": LeastStale,
    "static": Static,
}
