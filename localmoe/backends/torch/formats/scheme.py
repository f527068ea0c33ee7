"""What a checkpoint's quantization_config says that its tensors' shapes do not. It is hostile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from localmoe.errors import ModelFormatError, UnsupportedModelError

# Formats of compressed-tensors that store what the tensors' names and types say; others, such as
# marlin-24, use the same names for something else.
PACKED_FORMATS = (
    *("dense", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision"),
    *("pack-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized"),
)


@dataclass(frozen=True)
class Scheme:
    """What a config group says of its weights: `kind` is int or float, groups are along a row."""

    kind: str
    bits: int
    strategy: str
    group: int | None
    block: tuple[int, int] | None
    symmetric: bool


def check_config(config: Mapping[str, object]) -> None:
    """Raise UnsupportedModelError if the weights alone do not make the model."""
    if config.get("transform_config"):
        raise UnsupportedModelError(
            "the checkpoint's weights are rotated (quantization_config.transform_config), and its "
            "activations would have to be, too. Take a checkpoint without transforms."
        )
    if config.get("quant_method") != "compressed-tensors":
        return
    formats = [config.get("format"), *(group.get("format") for group in _groups(config))]
    for name in formats:
        if name is not None and name not in PACKED_FORMATS:
            raise UnsupportedModelError(
                f"the checkpoint's weights are compressed as {str(name)[:40]!r}: expected one of "
                f"{', '.join(PACKED_FORMATS)}. Take another quantization of the model."
            )


def block_of(config: Mapping[str, object]) -> tuple[int, int] | None:
    """Return the rows and columns that share an FP8 scale, if the config says."""
    value = config.get("weight_block_size")
    if value is not None:
        return _pair(value, "weight_block_size")
    for scheme in schemes_of(config):
        if scheme.kind == "float" and scheme.bits == 8:
            return scheme.block or ((1, scheme.group) if scheme.group else None)
    return None


def schemes_of(config: Mapping[str, object]) -> list[Scheme]:
    """Return what each config group of compressed-tensors says of its weights."""
    schemes = []
    for group in _groups(config):
        weights = group.get("weights")
        if weights is None:  # only activations are quantized
            continue
        if not isinstance(weights, Mapping):
            raise _wrong("config_groups: weights", weights, "an object or null")
        schemes.append(_scheme(weights))
    return schemes


def _groups(config: Mapping[str, object]) -> list[Mapping[str, object]]:
    groups = config.get("config_groups")
    if groups is None:
        return []
    if not isinstance(groups, Mapping) or not all(
        isinstance(group, Mapping) for group in groups.values()
    ):
        raise _wrong("config_groups", groups, "an object of objects")
    return list(groups.values())


def _scheme(weights: Mapping[str, object]) -> Scheme:
    kind, bits = weights.get("type", "int"), weights.get("num_bits", 8)
    group, strategy = weights.get("group_size"), weights.get("strategy")
    if kind not in ("int", "float"):
        raise _wrong("weights.type", kind, "int or float")
    if not isinstance(bits, int) or not 1 <= bits <= 32:
        raise _wrong("weights.num_bits", bits, "a number from 1 to 32")
    if group is not None and (not isinstance(group, int) or group < -1 or group == 0):
        raise _wrong("weights.group_size", group, "a number above 0, or -1 for whole channels")
    if strategy is None:  # as the library infers it
        strategy = "tensor" if group is None else "channel" if group == -1 else "group"
    if not isinstance(strategy, str):
        raise _wrong("weights.strategy", strategy, "a word")
    block = weights.get("block_structure")
    pair = None if block is None else _pair(block, "weights.block_structure")
    size = group if group is not None and group > 0 else None
    return Scheme(
        str(kind), bits, strategy, size, pair, weights.get("symmetric", True) is not False
    )


def _pair(value: object, name: str) -> tuple[int, int]:
    if isinstance(value, str):  # an older spelling: "128x128"
        value = [int(part) if part.isdecimal() else 0 for part in value[:20].split("x")]
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise _wrong(name, value, "two numbers above 0")
    rows, columns = value
    if not isinstance(rows, int) or not isinstance(columns, int) or rows < 1 or columns < 1:
        raise _wrong(name, value, "two numbers above 0")
    return rows, columns


def _wrong(name: str, found: object, wanted: str) -> ModelFormatError:
    return ModelFormatError(
        f"quantization_config, {name}: expected {wanted}, found {str(found)[:80]!r}. "
        "Download the model's config.json again."
    )
