"""The model on disk: headers, catalog and open files, with the settings that change its meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from localmoe.cache.direct_file import DirectFile, open_files
from localmoe.cache.mirrors import MirroredFile, check_copy, mirror_paths
from localmoe.cache.slots import SlotClass, slot_classes
from localmoe.errors import SettingsError
from localmoe.weights.catalog import Catalog
from localmoe.weights.gguf import build_catalog
from localmoe.weights.gguf_header import GgufHeader
from localmoe.weights.hparams import check_hparams
from localmoe.weights.shards import read_shards
from localmoe.weights.token_tables import check_token_tables

_USED_COUNT = "expert_used_count"


@dataclass(frozen=True)
class ModelSource:
    """A checked model file or its shards. Close it when no more weights are read."""

    headers: tuple[GgufHeader, ...]
    catalog: Catalog
    files: Mapping[str, DirectFile]
    experts_used: int | None
    """Number of active experts that replaces the checkpoint's own."""

    @property
    def block(self) -> int:
        """Alignment in bytes that suits direct reads of every shard; 1 if none is direct."""
        return max(file.block for file in self.files.values())

    @cached_property
    def slot_classes(self) -> tuple[SlotClass, ...]:
        """The size classes of the experts, laid out for direct reads."""
        return slot_classes(self.catalog.layers, self.block)

    @property
    def override(self) -> tuple[str, int] | None:
        """The metadata key and value that tell llama.cpp of `experts_used`."""
        if self.experts_used is None:
            return None
        return f"{self.catalog.architecture}.{_USED_COUNT}", self.experts_used

    def close(self) -> None:
        """Close the files. May be called twice."""
        for file in self.files.values():
            file.close()


def open_source(
    path: str | Path, experts_used: int | None, mirrors: Sequence[str] = ()
) -> ModelSource:
    """Read and check the headers, then open the files. Raises ModelError, SettingsError.

    `mirrors` are copies on other drives, as `cache.mirrors.mirror_paths` takes them.
    """
    headers = read_shards(path)
    catalog = build_catalog(headers)
    check_hparams(headers)
    check_token_tables(headers, catalog)
    if experts_used is not None:
        catalog = _with_experts_used(catalog, experts_used)
    files = open_files(catalog.paths)
    try:
        if mirrors:
            _mirror(files, headers, mirrors)
    except BaseException:
        for file in files.values():
            file.close()
        raise
    return ModelSource(headers, catalog, files, experts_used)


def _mirror(
    files: dict[str, DirectFile], headers: Sequence[GgufHeader], mirrors: Sequence[str]
) -> None:
    """Let every file be read from its copies, too. Raises SettingsError where one is no copy."""
    header_nbytes = {header.path: header.data_offset for header in headers}
    names = list(files)
    places = [mirror_paths(mirror, names) for mirror in mirrors]
    for name, *copies in zip(names, *places, strict=True):
        for copy in copies:
            check_copy(name, copy, header_nbytes[name])
    for name, *copies in zip(names, *places, strict=True):
        files[name] = MirroredFile([files[name], *map(DirectFile, copies)])


def _with_experts_used(catalog: Catalog, experts_used: int) -> Catalog:
    """Return the catalog of a model that routes to so many experts. Raises SettingsError."""
    if not catalog.layers:
        raise SettingsError(
            f"experts_used is {experts_used}, but this model is dense: it has no experts to "
            "choose from. Leave it out."
        )
    key = f"{catalog.architecture}.{_USED_COUNT}"
    if isinstance(catalog.metadata.get(key), tuple):
        raise SettingsError(
            f"experts_used is {experts_used}, but this model has a number for each layer ({key}), "
            "and llama.cpp can replace only one for all. Leave it out."
        )
    fewest = min(layer.n_experts for layer in catalog.layers)
    if experts_used > fewest:
        raise SettingsError(
            f"experts_used is {experts_used}, but a layer has only {fewest} experts. Choose "
            f"{fewest} at most."
        )
    layers = (replace(layer, n_experts_used=experts_used) for layer in catalog.layers)
    return replace(catalog, layers=tuple(layers))
