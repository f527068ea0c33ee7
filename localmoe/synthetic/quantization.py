"""Which type llama.cpp's stock quantizer gives each tensor.

Held against llama.cpp's own quantizer by a test, for every model and quantization known here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches

from localmoe.errors import SettingsError
from localmoe.synthetic.config import Config
from localmoe.synthetic.draft import Planned

_BASE = {
    "BF16": "BF16",
    "F16": "F16",
    "Q8_0": "Q8_0",
    "Q6_K": "Q6_K",
    "Q5_K_M": "Q5_K",
    "Q5_K_S": "Q5_K",
    "Q4_K_M": "Q4_K",
    "Q4_K_S": "Q4_K",
    "Q3_K_M": "Q3_K",
    "Q2_K": "Q2_K",
    "IQ4_XS": "IQ4_XS",
    "IQ2_M": "IQ2_S",
    "IQ2_XXS": "IQ2_XXS",
    "MXFP4": "MXFP4",
}
QUANTIZATIONS = tuple(_BASE)
"""Names that can be typed, finest first but for MXFP4."""

_NARROW = {
    **{"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "Q2_K": "Q4_0", "Q3_K": "Q4_0"},
    **{"IQ4_XS": "IQ4_NL", "IQ2_S": "IQ4_NL", "IQ3_S": "IQ4_NL", "IQ2_XXS": "IQ4_NL"},
}
"""What stands in where rows are no multiple of the 256 numbers that a block holds."""
_WIDE_BLOCK = 256
_LAYER = re.compile(r"blk\.(\d+)\.")


def quantization_named(text: str) -> str:
    """Return the name in QUANTIZATIONS that is meant. Raises SettingsError."""
    name = text.strip().upper().replace("-", "_")
    name = {"MXFP4_MOE": "MXFP4"}.get(name, name)
    if name not in _BASE:
        near = get_close_matches(name, QUANTIZATIONS, n=2, cutoff=0.4)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise SettingsError(
            f"there is no quantization {text!r} here. {hint}Known: {', '.join(QUANTIZATIONS)}"
        )
    return name


def tensor_types(config: Config, tensors: Sequence[Planned], quantization: str) -> list[str]:
    """Return the ggml type of each tensor of a model, in the given order."""
    rules = _Rules(config, tensors)
    choose = _CHOICES.get(quantization, _Rules.base)
    return [
        rules.fitted(tensor, choose(rules, tensor, _BASE[quantization]))
        if tensor.is_matrix
        else "F32"
        for tensor in tensors
    ]


class _Rules:
    """Counts what llama.cpp counts: where in the order of its kind a tensor stands."""

    def __init__(self, config: Config, tensors: Sequence[Planned]) -> None:
        self._config = config
        values = [t.name for t in tensors if _is_value(t.name)]
        self._value_place = {name: place for place, name in enumerate(values)}
        # It goes through a layer's tensors by name.
        downs = sorted((_layer(t.name), t.name) for t in tensors if _is_down(t))
        self._down_place = {name: place for place, (_, name) in enumerate(downs)}

    @staticmethod
    def fitted(tensor: Planned, type_name: str) -> str:
        """Return the type, or what takes its place in a tensor with narrow rows."""
        if tensor.dims[-1] % _WIDE_BLOCK == 0 or type_name not in _NARROW:
            return type_name
        return "Q8_0" if tensor.name == "output.weight" else _NARROW[type_name]

    def base(self, tensor: Planned, base: str) -> str:
        """All matrices alike, but for the last one of a coarse quantization."""
        if tensor.name == "output.weight" and base.startswith(("Q", "IQ")) and base != "Q8_0":
            return "Q6_K"
        return base

    def medium(self, tensor: Planned, base: str) -> str:
        """Q4_K_M and Q5_K_M: values and what goes out of the feed-forward finer in some layers."""
        place = self._place(tensor)
        if place is not None and _more_bits(*place):
            return "Q6_K"
        return self.base(tensor, base)

    def small(self, tensor: Planned, base: str) -> str:
        """Q4_K_S: the same in the first layers only."""
        if _is_value(tensor.name):
            return "Q5_K" if self._value_place[tensor.name] < 4 else base
        return "Q5_K" if self._is_early_down(tensor, 8) else self.base(tensor, base)

    def three(self, tensor: Planned, base: str) -> str:
        """Q3_K_M."""
        if _is_value(tensor.name):
            return "Q5_K" if self._value_place[tensor.name] < 2 else "Q4_K"
        if _is_down(tensor):
            return "Q5_K" if self._is_early_down(tensor, 16) else "Q4_K"
        return "Q4_K" if _is_mixing(tensor.name) else self.base(tensor, base)

    def two(self, tensor: Planned, base: str) -> str:
        """Q2_K."""
        if _is_value(tensor.name):
            return "Q4_K" if self._shares_keys else "Q3_K"
        if _is_down(tensor) or _is_mixing(tensor.name):
            return "Q3_K"
        return self.base(tensor, base)

    def non_linear(self, tensor: Planned, base: str) -> str:
        """IQ4_XS."""
        if _is_value(tensor.name):
            return "Q5_K" if self._shares_keys else base
        return "Q5_K" if self._is_early_down(tensor, 8) else self.base(tensor, base)

    def tiny(self, tensor: Planned, base: str) -> str:
        """IQ2_XXS and IQ2_M, which never leave the ends of a model as coarse as its middle."""
        fine = base == "IQ2_S"
        roles = {"token_embd.weight": "IQ3_S" if fine else "Q2_K", "output.weight": "Q5_K"}
        if tensor.name in roles:
            return roles[tensor.name]
        if _is_value(tensor.name):
            return "Q4_K"
        place = self._down_place.get(tensor.name)
        if place is not None and place < self._config.layers // 8:
            return "IQ3_S" if fine else "Q2_K"
        if fine and tensor.name.endswith(".attn_output.weight"):
            return "IQ3_S"
        return base

    def four(self, tensor: Planned, base: str) -> str:
        """MXFP4: the experts, and every other tensor of three dimensions."""
        return base if len(tensor.dims) == 3 else "Q8_0"

    @property
    def _shares_keys(self) -> bool:
        """Whether at least four heads share their keys and values."""
        return self._config.heads // self._config.kv_heads >= 4

    def _place(self, tensor: Planned) -> tuple[int, int] | None:
        if _is_value(tensor.name):
            return self._value_place[tensor.name], len(self._value_place)
        return (_layer(tensor.name), self._config.layers) if _is_down(tensor) else None

    def _is_early_down(self, tensor: Planned, share: int) -> bool:
        return _is_down(tensor) and _layer(tensor.name) < self._config.layers // share


_CHOICES: dict[str, Callable[[_Rules, Planned, str], str]] = {
    "Q4_K_M": _Rules.medium,
    "Q5_K_M": _Rules.medium,
    "Q4_K_S": _Rules.small,
    "Q3_K_M": _Rules.three,
    "Q2_K": _Rules.two,
    "IQ4_XS": _Rules.non_linear,
    "IQ2_M": _Rules.tiny,
    "IQ2_XXS": _Rules.tiny,
    "MXFP4": _Rules.four,
}


def _is_value(name: str) -> bool:
    return name.endswith((".attn_v.weight", ".attn_qkv.weight", ".attn_kv_b.weight"))


def _is_down(tensor: Planned) -> bool:
    return tensor.is_matrix and ".ffn_down" in tensor.name


def _is_mixing(name: str) -> bool:
    return name.endswith((".attn_output.weight", ".attn_qkv.weight"))


def _layer(name: str) -> int:
    match = _LAYER.match(name)
    return int(match[1]) if match else -1


def _more_bits(place: int, count: int) -> bool:
    """Whether llama.cpp gives more bits to the tensor at this place of so many."""
    return place < count // 8 or place >= 7 * count // 8 or (place - count // 8) % 3 == 2
