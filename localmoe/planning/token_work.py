"""What a token of a model multiplies with, from its headers: bytes by type, and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from localmoe.weights.catalog import Catalog
from localmoe.weights.ggml_types import GGML_TYPES
from localmoe.weights.gguf_header import GgufHeader

_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_NUMBERS_PER_BYTE = {t.name: t.block_elements / t.block_nbytes for t in GGML_TYPES.values()}


@dataclass(frozen=True)
class TokenWork:
    """The matrices that one token is multiplied with. Bytes by type: ggml's, or safetensors'."""

    resident: Mapping[str, int]
    """What every token uses; of an embedding only a row, which is left out."""
    routed: Mapping[str, int]
    """The experts of one token, all layers together."""
    layers: int
    moe_layers: int
    experts_used: int
    """Of a layer, the most of all layers."""
    numbers_per_byte: Mapping[str, float] = field(default_factory=lambda: _NUMBERS_PER_BYTE)
    """By type."""

    @property
    def resident_nbytes(self) -> int:
        """Bytes of `resident`."""
        return sum(self.resident.values())

    @property
    def routed_nbytes(self) -> int:
        """Bytes of `routed`: what a token reads where nothing is found in memory."""
        return sum(self.routed.values())

    def operations(self, type_name: str) -> float:
        """Return the multiplications and additions of a token with matrices of a type."""
        nbytes = self.resident.get(type_name, 0) + self.routed.get(type_name, 0)
        return 2 * nbytes * self.numbers_per_byte[type_name]

    @property
    def types(self) -> tuple[str, ...]:
        """All types that occur."""
        return tuple(sorted({*self.resident, *self.routed}))


def token_work(headers: Sequence[GgufHeader], catalog: Catalog) -> TokenWork:
    """Add up the matrices that a token passes, as the catalog divides them."""
    kinds = {t.name: t.type_name for header in headers for t in header.tensors}
    resident: dict[str, int] = {}
    for tensor in catalog.resident:
        if tensor.name != _EMBEDDING or _OUTPUT not in kinds:
            kind = kinds[tensor.name]
            resident[kind] = resident.get(kind, 0) + tensor.extent.nbytes
    routed: dict[str, int] = {}
    for layer in catalog.layers:
        for part in layer.parts:
            kind = kinds[part.tensor]
            routed[kind] = routed.get(kind, 0) + part.expert_nbytes * layer.n_experts_used
    return TokenWork(
        resident=resident,
        routed=routed,
        layers=_block_count(catalog),
        moe_layers=len(catalog.layers),
        experts_used=max((layer.n_experts_used for layer in catalog.layers), default=0),
    )


def _block_count(catalog: Catalog) -> int:
    count = catalog.metadata.get(f"{catalog.architecture}.block_count", 1)
    return count if isinstance(count, int) else 1
