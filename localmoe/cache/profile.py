"""Which experts earlier runs of a model used: a small file per model, kept between runs."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from localmoe.cache.policies import UseRates, Uses
from localmoe.cache.slots import SlotLayout
from localmoe.replacing import replaced_file
from localmoe.weights.catalog import Catalog, MoeLayer

FORMAT = 1
_MAX_NBYTES = 16 << 20
_MAX_COUNT = 1e15
_REMEMBERED_TOKENS = 8192.0
"""What earlier runs count for at most, against those to come."""
_log = logging.getLogger(__name__)


def first_rates(slots: SlotLayout, profile: Profile | None) -> UseRates | None:
    """Return what to read before anybody asks, by how often it was used; None: nothing.

    All experts alike where all of them fit, else those of earlier runs.
    """
    pairs = zip(slots.limits, slots.classes, strict=True)
    if all(limit >= each.n_experts for limit, each in pairs):
        return {m.layer: np.ones(m.n_experts) for each in slots.classes for m in each.layers}
    return profile.read() if profile else None


def profile_name(catalog: Catalog) -> str:
    """Return the file name for a model."""
    return f"experts-{catalog_digest(catalog)}.json"


def catalog_digest(catalog: Catalog) -> str:
    """Return what tells a model from others: its name, and what its header says of its experts."""
    digest = hashlib.sha256(catalog.architecture.encode())
    for layer in catalog.layers:
        digest.update(f"\n{layer.layer} {layer.n_experts} {layer.n_experts_used}".encode())
        for part in layer.parts:
            offset = part.expert_pieces(0)[0].offset
            digest.update(
                f" {part.tensor} {offset} {part.expert_nbytes}".encode(errors="surrogateescape")
            )
    digest.update(Path(catalog.paths[0]).name.encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


class Profile:
    """The file of one model. What cannot be read or written is a warning, never an error."""

    def __init__(self, directory: Path, catalog: Catalog) -> None:
        self.path = directory / profile_name(catalog)
        self._layers: Mapping[int, MoeLayer] = {m.layer: m for m in catalog.layers}

    def read(self) -> UseRates:
        """Return the share of tokens that used each expert; nothing without a usable file."""
        try:
            found = self._load()
        except OSError as error:
            _log.warning("the profile %s cannot be read (%s): starting cold", self.path, error)
            return {}
        except (ValueError, RecursionError) as error:
            _log.warning(
                "the profile %s is no usable one (%s): starting cold; it is replaced at the end",
                self.path,
                error,
            )
            return {}
        return {layer: uses.counts / uses.tokens for layer, uses in found.items() if uses.tokens}

    def add(self, run: Mapping[int, Uses]) -> None:
        """Add what a run used, and replace the file at once; runs beside this one do the same."""
        if not any(uses.tokens for uses in run.values()):
            return
        try:
            before = self._load()
        except (OSError, ValueError, RecursionError):
            before = {}
        merged = {layer: _merge(before.get(layer), uses) for layer, uses in run.items()}
        values = {
            "format": FORMAT,
            "layers": {
                str(layer): {
                    "tokens": round(uses.tokens, 2),
                    "uses": [round(count, 2) for count in uses.counts.tolist()],
                }
                for layer, uses in merged.items()
            },
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replaced_file(self.path) as file:
                file.write(json.dumps(values).encode())
        except OSError as error:
            _log.warning(
                "the profile %s cannot be written (%s): the next run starts cold", self.path, error
            )

    def _load(self) -> dict[int, Uses]:
        """Return what the file holds, nothing if there is none. Raises OSError, ValueError."""
        if not self.path.exists():
            return {}
        if not self.path.is_file():
            raise ValueError("it is no file")
        with open(self.path, "rb") as file:
            data = file.read(_MAX_NBYTES + 1)
        if len(data) > _MAX_NBYTES:
            raise ValueError(f"it is larger than {_MAX_NBYTES} bytes")
        values = json.loads(data)
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"it is not of format {FORMAT}")
        layers = values.get("layers")
        if not isinstance(layers, dict) or set(layers) != {str(n) for n in self._layers}:
            raise ValueError("it has other layers than the model")
        return {
            number: _uses(layers[str(number)], layer.n_experts)
            for number, layer in self._layers.items()
        }


def _uses(value: Any, n_experts: int) -> Uses:
    """Check what the file says of one layer. Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError("a layer is no object")
    tokens, counts = value.get("tokens"), value.get("uses")
    if not isinstance(counts, list) or len(counts) != n_experts:
        raise ValueError(f"a layer has not {n_experts} experts")
    uses = Uses(_count(tokens), np.array([_count(count) for count in counts]))
    if uses.counts.max(initial=0) > uses.tokens:
        raise ValueError("an expert was used by more tokens than there were")
    return uses


def _count(value: object) -> float:
    """Return a number that can be a count. Raises ValueError."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < _MAX_COUNT:
        return float(value)
    raise ValueError("a count is no number")


def _merge(before: Uses | None, run: Uses) -> Uses:
    if before is None:
        return run
    scale = min(1.0, _REMEMBERED_TOKENS / max(before.tokens, 1.0))
    return Uses(before.tokens * scale + run.tokens, before.counts * scale + run.counts)
