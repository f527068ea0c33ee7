"""A named model of the zoo: how it is built, and what a reader of the docs wants to know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zoo.draft import Draft
from zoo.shape import Shape


@dataclass(frozen=True)
class ZooModel:
    """One row of the gates and of the table in the docs."""

    architecture: str
    """llama.cpp's name of it, as in general.architecture."""
    build: Callable[[Draft], None]
    """Declares its keys and tensors."""
    shape: Shape
    stands_for: str
    """The checkpoints whose form it has, or the layout that it is about."""
    covers: str
    """What of it makes a difference to streaming or to arithmetic, in a few words."""
