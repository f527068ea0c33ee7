"""What config.json of a checkpoint says, as far as a plan needs it; hostile until checked."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from localmoe.errors import ModelFormatError, ModelNotFoundError

_NAME = "config.json"
_MOST_NBYTES = 16 << 20
_TEXT_PARTS = ("thinker_config", "text_config", "language_config", "llm_config")
"""Where a model that also sees or hears keeps what belongs to the part that writes."""
_MOST = 1 << 30
MAX_LAYERS = 1024

_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
_EXPERTS = (
    *("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    *("num_routed_experts",),
)
_EXPERTS_USED = (
    *("num_experts_per_tok", "num_experts_per_token", "experts_per_token"),
    *("moe_topk", "moe_top_k", "top_k_experts", "moe_k"),
)


@dataclass(frozen=True)
class CheckpointConfig:
    """The values of config.json. Numbers are checked when they are asked for."""

    path: str
    values: Mapping[str, Any]

    @cached_property
    def text(self) -> Mapping[str, Any]:
        """Those of the part that writes text; most models have no other."""
        found = self.values
        for name in _TEXT_PARTS:
            part = found.get(name)
            if isinstance(part, Mapping):
                found = part
        return found

    @property
    def model_type(self) -> str:
        """What kind of model it is. Raises ModelFormatError."""
        found = self.values.get("model_type")
        if not isinstance(found, str) or not found.isprintable() or not 0 < len(found) <= 64:
            raise ModelFormatError(
                f"{self.path} should name the model's kind in model_type, but has "
                f"{str(found)[:80]!r}. It is damaged, or not that of a language model."
            )
        return found

    @property
    def dtype(self) -> str:
        """What is computed in, as safetensors names it."""
        said = self.values.get("dtype", self.values.get("torch_dtype"))
        return {"float16": "F16", "float32": "F32"}.get(str(said).removeprefix("torch."), "BF16")

    @property
    def n_layers(self) -> int | None:
        """How many layers a token passes. Raises ModelFormatError."""
        return self.number(*_LAYERS, most=MAX_LAYERS)

    @property
    def n_experts(self) -> int | None:
        """How many experts a layer has, the most where layers differ. Raises ModelFormatError."""
        return self.number(*_EXPERTS)

    @property
    def n_experts_used(self) -> int | None:
        """How many of them a token uses, the most where layers differ. Raises ModelFormatError."""
        return self.number(*_EXPERTS_USED)

    @property
    def context_tokens(self) -> int | None:
        """How many tokens it was made for. Raises ModelFormatError."""
        return self.number("max_position_embeddings")

    @property
    def quantization(self) -> Mapping[str, Any]:
        """What is said of how weights are stored; empty where nothing is."""
        for part in (self.values, self.text):
            found = part.get("quantization_config")
            if isinstance(found, Mapping):
                return found
        return {}

    def number(self, *names: str, most: int = _MOST) -> int | None:
        """Return the first of these numbers that is there; of a list the largest; None: none is.

        Raises ModelFormatError for one that is none, or not from 0 to `most`.
        """
        for name in names:
            value = self.text.get(name)
            if value is None or value == []:
                continue
            counts: list[int] = value if isinstance(value, list) else [value]
            if not all(type(count) is int and 0 <= count <= most for count in counts):
                raise ModelFormatError(
                    f"{self.path}: {name} should be a number from 0 to {most}, but is "
                    f"{_shown(value)}. It is damaged, or of a kind that is not known here."
                )
            return max(counts)
        return None


def read_checkpoint_config(folder: str | Path) -> CheckpointConfig:
    """Read config.json of a checkpoint's folder. Raises ModelNotFoundError, ModelFormatError."""
    path = os.path.join(folder, _NAME)
    return CheckpointConfig(path, read_object(path))


def read_object(path: str) -> dict[str, Any]:
    """Read a file that holds one JSON object. Raises ModelNotFoundError, ModelFormatError."""
    try:
        with open(path, "rb") as file:
            text = file.read(_MOST_NBYTES + 1)
    except OSError as error:
        raise ModelNotFoundError(
            f"cannot read {path}: {error.strerror}. A checkpoint is a folder with config.json and "
            "*.safetensors: pull it again, or name its folder."
        ) from error
    return parse_object(text, path)


def parse_object(text: bytes, path: str) -> dict[str, Any]:
    """Return the JSON object of a text; `path` names it in messages. Raises ModelFormatError."""
    if len(text) > _MOST_NBYTES:
        raise ModelFormatError(f"{path} is longer than {_MOST_NBYTES} bytes: it is damaged.")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path} is not JSON: {str(error)[:200]}. Pull it again.") from error
    if not isinstance(values, dict):
        raise ModelFormatError(f"{path} holds no JSON object but a {type(values).__name__}.")
    return values


def _shown(value: object) -> str:
    """Return a short text of any value: that of a number of many digits cannot be asked for."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    return f"{value!r:.80}" if not isinstance(value, list | dict) else f"a {type(value).__name__}"
