"""The experts of a checkpoint: catalog, open files, and the kinds of arrays they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mlx.utils import tree_flatten

from localmoe.backends.mlx.checkpoint import Checkpoint
from localmoe.backends.mlx.marks import Marks
from localmoe.backends.mlx.switches import Switch
from localmoe.cache.direct_file import DirectFile, open_files
from localmoe.cache.planes import plane_classes
from localmoe.cache.slots import SlotClass
from localmoe.weights.catalog import Catalog, Extent, MoeLayer, ResidentTensor


@dataclass(frozen=True)
class MlxSource:
    """A checkpoint with the places of its experts. Close it when no more of them are read."""

    catalog: Catalog
    switches: Mapping[int, Switch]
    """By layer."""
    files: Mapping[str, DirectFile]
    resident_nbytes: int
    """Bytes of what stays in memory, as mlx-lm keeps it."""

    def classes(self, buffer_nbytes: int) -> tuple[SlotClass, ...]:
        """Return the size classes; no array of slots is longer than `buffer_nbytes`.

        Raises UnsupportedModelError.
        """
        return plane_classes(
            self.catalog.layers, lambda layer: self.switches[layer.layer].arrays, buffer_nbytes
        )

    def close(self) -> None:
        """Close the files. May be called twice."""
        for file in self.files.values():
            file.close()


def marks_of(checkpoint: Checkpoint) -> Marks:
    """Ask mlx-lm what it makes of the stored experts; the model is whole. Raises ModelError."""
    return Marks(checkpoint.model, checkpoint.tensors, checkpoint.weights())


def find_experts(
    checkpoint: Checkpoint,
    marks: Marks,
    switches: tuple[Switch, ...],
    used: Mapping[int, int],
    owns: Callable[[str], bool],
) -> MlxSource:
    """Find the experts of a model, whose switches are empty, and open the files.

    `used` is how many experts a token uses, by layer. `owns` tells which stored tensors are for
    this process, where others have some of the layers. Raises ModelError.
    """
    layers = []
    for switch in switches:
        parts = tuple(marks.part(switch, array) for array in switch.arrays)
        layers.append(MoeLayer(switch.layer, switch.n_experts, used[switch.layer], parts))
    tensors, taken = checkpoint.tensors, _pieces(layers)
    resident = tuple(
        ResidentTensor(tensor.name, tensor.extent)
        for tensor in tensors.values()
        if tensor.extent not in taken and owns(tensor.name)
    )
    paths = tuple(sorted({tensor.extent.path for tensor in tensors.values()}))
    parameters = tree_flatten(checkpoint.model.parameters())
    return MlxSource(
        Catalog(checkpoint.model_type, paths, resident, tuple(layers)),
        {switch.layer: switch for switch in switches},
        open_files(paths),
        sum(array.nbytes for _, array in parameters),
    )


def _pieces(layers: list[MoeLayer]) -> set[Extent]:
    """Return the extents of whole tensors that hold experts."""
    found: set[Extent] = set()
    for layer in layers:
        for part in layer.parts:
            extent = getattr(part, "extent", None)
            if extent is not None:
                found.add(extent)
            else:
                found.update(
                    piece for e in range(layer.n_experts) for piece in part.expert_pieces(e)
                )
    return found
