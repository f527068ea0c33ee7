"""What a checkpoint holds before its bytes: keys, and tensors that have no type yet."""

from __future__ import annotations

import math
from dataclasses import dataclass

from localmoe.synthetic.config import Config

Key = int | float | bool | str | list[int] | list[bool]


@dataclass(frozen=True)
class Planned:
    """A tensor: `dims` with rows first, and what its random weights look like.

    A matrix gets a type of the quantization; all else stays float32.
    """

    name: str
    dims: tuple[int, ...]
    is_matrix: bool
    std: float
    mean: float = 0.0

    @property
    def n_elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.dims)


class Draft:
    """Collects the keys and tensors of one model, in the order of the file."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.keys: dict[str, Key] = {}
        self.tensors: list[Planned] = []

    def key(self, **values: Key) -> None:
        """Set keys below the architecture's prefix; `__` stands for a dot."""
        for name, value in values.items():
            self.keys[f"{self.config.architecture}.{name.replace('__', '.')}"] = value

    def matrix(self, name: str, *dims: int, gain: float = 1.0) -> None:
        """Add `name.weight` [..., out, in]; it multiplies the deviation of its input by `gain`."""
        self.tensors.append(Planned(f"{name}.weight", dims, True, gain / math.sqrt(dims[-1])))

    def vector(self, name: str, *dims: int, std: float = 0.0, mean: float = 0.0) -> None:
        """Add a float32 tensor: norms, biases, routers."""
        self.tensors.append(Planned(name, dims, False, std, mean))

    def norms(self, *names: str, size: int) -> None:
        """Add norms that scale by one."""
        for name in names:
            self.vector(f"{name}.weight", size, mean=1.0)
