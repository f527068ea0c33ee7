"""What a token of a model multiplies with, from its headers: bytes by type, and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from localmoe.weights.catalog import Catalog
from localmoe.weights.ggml_types import GGML_TYPES
from localmoe.weights.gguf_header import GgufHeader
from localmoe.weights.gguf_tensors import TensorInfo

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
    resident_rows: int = 0
    """Rows of the resident matrices: each is one sum of products. 0: not known."""
    routed_rows: int = 0
    """The same of the experts of one token."""
    queries_per_key: float = 1.0
    """How many query heads go through the same keys and values, layers taken together."""

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
    tensors = {t.name: t for header in headers for t in header.tensors}
    resident: dict[str, int] = {}
    routed: dict[str, int] = {}
    resident_rows = routed_rows = 0
    for one in catalog.resident:
        if one.name != _EMBEDDING or _OUTPUT not in tensors:
            tensor = tensors[one.name]
            kind = tensor.type_name
            resident[kind] = resident.get(kind, 0) + one.extent.nbytes
            resident_rows += _rows(tensor)
    for layer in catalog.layers:
        for part in layer.parts:
            tensor = tensors[part.tensor]
            kind = tensor.type_name
            routed[kind] = routed.get(kind, 0) + part.expert_nbytes * layer.n_experts_used
            routed_rows += _rows(tensor) // layer.n_experts * layer.n_experts_used
    return TokenWork(
        resident=resident,
        routed=routed,
        layers=_block_count(catalog),
        moe_layers=len(catalog.layers),
        experts_used=max((layer.n_experts_used for layer in catalog.layers), default=0),
        resident_rows=resident_rows,
        routed_rows=routed_rows,
        queries_per_key=_queries_per_key(catalog),
    )


def _rows(tensor: TensorInfo) -> int:
    """Return the rows of a matrix, or of all of a stack; 0 of what is no matrix."""
    _, rows, matrices, more = tensor.shape
    return rows * matrices * more if rows > 1 else 0


def _queries_per_key(catalog: Catalog) -> float:
    """Return query heads by key heads; layers without either do not count."""
    counts = []
    for key in ("head_count", "head_count_kv"):
        value = catalog.metadata.get(f"{catalog.architecture}.attention.{key}", 0)
        elements = value if isinstance(value, tuple) else (value,) * _block_count(catalog)
        counts.append([int(n) if isinstance(n, int) else 0 for n in elements])
    pairs = [(q, k) for q, k in zip(*counts, strict=False) if q > 0 and k > 0]
    return sum(q for q, _ in pairs) / sum(k for _, k in pairs) if pairs else 1.0


def _block_count(catalog: Catalog) -> int:
    count = catalog.metadata.get(f"{catalog.architecture}.block_count", 1)
    return count if isinstance(count, int) else 1
