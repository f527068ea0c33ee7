"""The checkpoint on disk: configuration, weights by name, catalog and open files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedModel

from localmoe.backends.torch.expert_sources import ExpertSource, find_sources
from localmoe.backends.torch.model_config import ModelConfig, read_config
from localmoe.backends.torch.stripped import ExpertModule, Stripped
from localmoe.backends.torch.weight import Weight
from localmoe.backends.torch.weights import find_weights
from localmoe.cache.direct_file import DirectFile, open_files
from localmoe.cache.slots import SlotClass, slot_classes
from localmoe.weights.catalog import Catalog, MoeLayer, ResidentTensor, ScatteredPart
from localmoe.weights.safetensors import read_tensors


@dataclass(frozen=True)
class Checkpoint:
    """What is known before the model is built."""

    folder: Path
    config: ModelConfig
    weights: Mapping[str, Weight]
    dtype: torch.dtype
    """What the model is computed in."""


@dataclass(frozen=True)
class TorchSource:
    """A checkpoint with the places of its experts. Close it when no more weights are read."""

    catalog: Catalog
    sources: Mapping[str, ExpertSource]
    resident: Mapping[str, Weight]
    files: Mapping[str, DirectFile]

    @cached_property
    def slot_classes(self) -> tuple[SlotClass, ...]:
        """The size classes of the experts, laid out for direct reads."""
        return slot_classes(self.catalog.layers, max(file.block for file in self.files.values()))

    @cached_property
    def device_classes(self) -> tuple[SlotClass, ...]:
        """The size classes of the experts, laid out for copies: without slack."""
        return slot_classes(self.catalog.layers, 1)

    @property
    def resident_nbytes(self) -> int:
        """Bytes of what stays in memory, decoded."""
        return sum(w.n_numbers * w.dtype.itemsize for w in self.resident.values())

    def close(self) -> None:
        """Close the files. May be called twice."""
        for file in self.files.values():
            file.close()


def open_checkpoint(path: Path) -> Checkpoint:
    """Read the headers and the configuration. Raises ModelError."""
    folder = path if path.is_dir() else path.parent
    tensors = read_tensors(path)
    config = read_config(folder)
    said = getattr(config.config, "dtype", None)
    dtype = said if isinstance(said, torch.dtype) else torch.bfloat16
    weights = find_weights(tensors, config.quantization, dtype)
    return Checkpoint(folder, config, weights, dtype)


def find_experts(checkpoint: Checkpoint, model: PreTrainedModel, stripped: Stripped) -> TorchSource:
    """Find the experts of a model in its checkpoint, and open the files. Raises ModelError."""
    weights = checkpoint.weights
    sources, needed = find_sources(model, weights, stripped.shapes, checkpoint.dtype)
    taken = {w.name for s in sources.values() for row in s.weights for w in row}
    needed -= taken
    resident = {name: weight for name, weight in weights.items() if name in needed}
    used = _experts_used(model)
    layers = tuple(_layer(one, sources, used) for one in stripped.modules)
    tensors = tuple(
        ResidentTensor(stored.name, stored.extent) for w in resident.values() for stored in w.stored
    )
    paths = sorted({t.extent.path for w in weights.values() for t in w.stored})
    catalog = Catalog(str(model.config.model_type), tuple(paths), tensors, layers)
    return TorchSource(catalog, sources, resident, open_files(paths))


def _layer(one: ExpertModule, sources: Mapping[str, ExpertSource], used: int) -> MoeLayer:
    parts = []
    n_experts = min(
        sources[f"{one.name}.{name}"].n_experts for names in one.parts for name in names
    )
    for names in one.parts:
        found = [sources[f"{one.name}.{name}"] for name in names]
        pieces = tuple(
            tuple(extent for source in found for extent in source.extents(expert))
            for expert in range(n_experts)
        )
        nbytes = sum(source.expert_nbytes for source in found)
        parts.append(ScatteredPart(f"{one.name}.{names[0]}", pieces, nbytes))
    return MoeLayer(one.layer, n_experts, min(used, n_experts), tuple(parts))


def _experts_used(model: PreTrainedModel) -> int:
    """Return how many experts a token uses, the most where layers differ."""
    config = model.config.get_text_config()
    for name in ("num_experts_per_tok", "moe_topk", "moe_top_k", "top_k_experts", "moe_k"):
        value = getattr(config, name, None)
        if isinstance(value, list | tuple):
            value = max(value, default=None)
        if isinstance(value, int) and value > 0:
            return value
    return 1
