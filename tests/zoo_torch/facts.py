"""What is known of each model type, as docs/torch-models.md has it: tests check the page itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from types import MappingProxyType

PAGE = Path(__file__).parents[2] / "docs" / "torch-models.md"


@dataclass(frozen=True)
class Facts:
    """One type's rows of both tables of the page."""

    architecture: str
    """Class of the whole model."""
    experts: str
    """Class of the modules that hold routed experts."""
    interface: bool
    """Whether transformers' experts interface reaches them."""
    layout: frozenset[str]
    """Words that the page explains."""
    tensors: frozenset[str]
    """Names of their weights in a file, with * for every number."""
    router: str
    """Name of the module beside them that says which experts a token goes to."""
    router_output: int
    """Where in its output tuple it says so."""
    attention: str
    """What transformers takes where nobody asks for an implementation."""
    float32_difference: float
    """Largest difference of a logit between the two stock implementations of experts."""
    bfloat16_difference: float
    chunks: bool
    """Whether a prompt can be read in several steps."""
    crop: str
    """How the cache goes back: "always", "recorded" or "no"."""


@cache
def facts() -> Mapping[str, Facts]:
    """Return what the page says, by model type in its order. Raises ValueError on a stray row."""
    experts, engine = _tables(PAGE.read_text())
    if list(experts) != list(engine):
        raise ValueError(f"{PAGE.name}: its tables have other types, or another order")
    rows = {name: _facts(experts[name], engine[name]) for name in experts}
    return MappingProxyType(rows)


def _tables(page: str) -> Iterator[dict[str, list[str]]]:
    """Yield the cells of both tables of types, a row by its type, without code marks."""
    for table in re.findall(r"^\| type .*\n(?:\|.*\n)+", page, flags=re.MULTILINE):
        lines = [line.strip("|").split("|") for line in table.splitlines()[2:]]
        cells = [[cell.strip().replace("`", "") for cell in line] for line in lines]
        yield {first: rest for first, *rest in cells}


def _facts(experts: list[str], engine: list[str]) -> Facts:
    architecture, module, interface, layout, tensors, router = experts
    attention, float32, bfloat16, chunks, crop = engine
    where = re.fullmatch(r"(\w+)\[(\d)\]", router)
    if where is None:
        raise ValueError(f"{PAGE.name}: {router} is not a module and a place in its output")
    return Facts(
        architecture,
        module,
        interface == "yes",
        frozenset(layout.split(", ")),
        frozenset(name for pattern in tensors.split(" ") for name in _expanded(pattern)),
        where[1],
        int(where[2]),
        attention,
        float(float32),
        float(bfloat16),
        chunks == "yes",
        crop,
    )


def _expanded(pattern: str) -> list[str]:
    """Return what a pattern with {one,other} stands for, as a shell would."""
    parts = [part.split(",") for part in re.split(r"[{}]", pattern)]
    return ["".join(choice) for choice in product(*parts)]
