"""A model that was planned for, from its headers alone."""

from __future__ import annotations

from dataclasses import dataclass

from localmoe.planning.budget import SlotPlan
from localmoe.planning.token_work import TokenWork
from localmoe.settings import EngineName
from localmoe.weights.catalog import Catalog


@dataclass(frozen=True)
class PlannedModel:
    """A model that was planned for and not loaded."""

    catalog: Catalog
    work: TokenWork
    slot_plan: SlotPlan
    engine: EngineName = "llama"
    """Who would compute."""
