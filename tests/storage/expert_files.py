"""A checkpoint's expert tensors as files of random bytes, with the catalog of where they lie."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from localmoe.cache.direct_file import DirectFile
from localmoe.weights.catalog import ExpertPart, Extent, MoeLayer, Part, ScatteredPart
from storage.disk import Disk

_ALIGNMENT_NBYTES = 32  # of tensors in a GGUF file


class LayerShape(NamedTuple):
    """One layer to be made: `part_nbytes` are the lengths of one expert's parts.

    Where it is `scattered`, each part of each expert is put together from runs in any shards.
    """

    n_experts: int
    part_nbytes: tuple[int, ...]
    n_experts_used: int = 1
    shard: int = 0
    scattered: bool = False


class ExpertFiles:
    """Random experts in one file per shard; parts of a layer lie as in a GGUF, one by one.

    Those of scattered layers lie as in safetensors: tensors of their own, at odd offsets.

    The files end with the last part: what a direct read wants beyond is not there.
    """

    def __init__(self, directory: Path, shapes: Sequence[LayerShape], *, seed: int = 0) -> None:
        shards = {shape.shard for shape in shapes}
        self.paths = {shard: str(directory / f"experts-{shard}.bin") for shard in sorted(shards)}
        source = random.Random(seed)
        self._bytes = {shard: bytearray(source.randbytes(100)) for shard in shards}
        self.layers = tuple(self._layer(i, shape, source) for i, shape in enumerate(shapes))
        for shard, path in self.paths.items():
            Path(path).write_bytes(self._bytes[shard])
        self._contents = {self.paths[shard]: bytes(data) for shard, data in self._bytes.items()}

    def expert(self, layer: int, expert: int) -> list[bytes]:
        """Return the bytes of each part of an expert."""
        return [
            b"".join(
                self._contents[e.path][e.offset : e.offset + e.nbytes]
                for e in part.expert_pieces(expert)
            )
            for part in self.layers[layer].parts
        ]

    def open(self, disk: Disk, blocks: Mapping[int, int] | int = 512) -> dict[str, DirectFile]:
        """Open every shard on this disk; `blocks` is its alignment, one for all or by shard."""
        return {
            path: disk.open(path, blocks if isinstance(blocks, int) else blocks[shard])
            for shard, path in self.paths.items()
        }

    def _layer(self, number: int, shape: LayerShape, source: random.Random) -> MoeLayer:
        data, path = self._bytes[shape.shard], self.paths[shape.shard]
        parts: list[Part] = []
        for index, nbytes in enumerate(shape.part_nbytes):
            name = f"blk.{number}.part{index}"
            if shape.scattered:
                runs = [self._runs(nbytes, source) for _ in range(shape.n_experts)]
                parts.append(ScatteredPart(name, tuple(runs), nbytes))
                continue
            data += source.randbytes(-len(data) % _ALIGNMENT_NBYTES)
            extent = Extent(path, len(data), nbytes * shape.n_experts)
            data += source.randbytes(extent.nbytes)
            parts.append(ExpertPart(name, extent, nbytes))
        return MoeLayer(number, shape.n_experts, shape.n_experts_used, tuple(parts))

    def _runs(self, nbytes: int, source: random.Random) -> tuple[Extent, ...]:
        """Write an expert's part in one to three runs; now and then one fits direct reads."""
        cuts = {source.choice((nbytes // 2, 512, source.randrange(nbytes))) for _ in range(2)}
        cuts = {0, nbytes, *(cut for cut in cuts if 0 < cut < nbytes and source.random() < 0.6)}
        runs = []
        for begin, end in pairwise(sorted(cuts)):
            shard = source.choice(sorted(self.paths))
            data = self._bytes[shard]
            align = source.choice((1, 32, 4096, 4096))
            data += source.randbytes(-len(data) % align)
            runs.append(Extent(self.paths[shard], len(data), end - begin))
            data += source.randbytes(end - begin)
        return tuple(runs)
