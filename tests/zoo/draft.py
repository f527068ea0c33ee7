"""A model in the making: named tensors and keys, then one or more GGUF files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

from zoo.encoding import encode, generator
from zoo.shape import Shape
from zoo.tokenizer import add_tokenizer, vocabulary

Key = int | float | bool | str | list[int] | list[float] | list[bool]
"""A value of a GGUF key; lists have one element per layer or section."""


class Wide(list[int]):
    """Numbers that a GGUF key holds with 64 bits each."""


class Draft:
    """Collects what an architecture's function declares. Shapes are numpy's: rows first."""

    def __init__(self, architecture: str, shape: Shape) -> None:
        self.architecture, self.shape = architecture, shape
        self._tensors: dict[str, tuple[npt.NDArray[Any], str]] = {}
        self._keys: dict[str, Key] = {}

    def key(self, **values: Key) -> None:
        """Set keys below the architecture's prefix; `__` stands for a dot."""
        for name, value in values.items():
            self._keys[f"{self.architecture}.{name.replace('__', '.')}"] = value

    def noise(self, name: str, *dims: int, std: float, mean: float = 0.0) -> None:
        """Add a float32 tensor of random numbers: norms, biases, routers."""
        values = generator(self.shape.seed, name).normal(mean, std, dims).astype(np.float32)
        self._tensors[name] = (values, "F32")

    def table(self, name: str, rows: npt.NDArray[np.int32]) -> None:
        """Add `name.weight`, a table of numbers."""
        self._tensors[f"{name}.weight"] = (rows, "I32")

    def norm(self, name: str, size: int, mean: float = 1.0) -> None:
        """Add the weights of a norm."""
        self.noise(f"{name}.weight", size, std=0.1 * mean, mean=mean)

    def matrix(self, name: str, *dims: int, gain: float = 1.0, type_name: str = "") -> None:
        """Add `name.weight` [..., out, in]; it multiplies the deviation of its input by `gain`."""
        self.packed(name, [name], *dims, gain=gain, type_name=type_name)

    def packed(
        self, name: str, parts: list[str], *dims: int, gain: float = 1.0, type_name: str = ""
    ) -> None:
        """Add one tensor whose rows are those of several parts, each [..., out, in]."""
        std = gain / math.sqrt(dims[-1])
        arrays = [
            generator(self.shape.seed, part).normal(0, std, dims).astype(np.float32)
            for part in parts
        ]
        kind = type_name or self.shape.resident_type
        self._tensors[f"{name}.weight"] = (encode(np.concatenate(arrays, axis=-2), kind), kind)

    def write(self, directory: Path, stem: str) -> Path:
        """Write the files and return the first one."""
        per_shard = math.ceil(len(self._tensors) / self.shape.shards)
        path = directory / f"{stem}.gguf"
        split = per_shard if self.shape.shards > 1 else 0
        writer = GGUFWriter(path, self.architecture, split_max_tensors=split)
        if self.shape.alignment != 32:
            writer.add_custom_alignment(self.shape.alignment)
        add_tokenizer(writer)
        self._add_keys(writer)
        for name, (values, type_name) in self._tensors.items():
            writer.add_tensor(name, values, raw_dtype=GGMLQuantizationType[type_name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        if self.shape.shards == 1:
            return path
        return directory / f"{stem}-00001-of-{self.shape.shards:05d}.gguf"

    def _add_keys(self, writer: GGUFWriter) -> None:
        writer.add_name(f"zoo {self.architecture}")
        writer.add_vocab_size(len(vocabulary()))
        for name, value in {**self._keys, **self.shape.metadata}.items():
            if isinstance(value, bool):
                writer.add_bool(name, value)
            elif isinstance(value, int):
                writer.add_uint32(name, value)
            elif isinstance(value, float):
                writer.add_float32(name, value)
            elif isinstance(value, Wide):
                writer.add_key_value(name, value, GGUFValueType.ARRAY, GGUFValueType.UINT64)
            elif isinstance(value, list):
                writer.add_array(name, value)
            else:
                writer.add_string(name, value)
