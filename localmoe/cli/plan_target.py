"""What `localmoe plan` was asked to look at, as a file: a real one, or a header with a hole."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from localmoe.cli.inspect import header_file
from localmoe.cli.model_argument import model_title, typed_hub_name
from localmoe.errors import SettingsError
from localmoe.planning.advice import Smaller
from localmoe.synthetic.config import Config
from localmoe.synthetic.models import config_named, known_name, near_names
from localmoe.synthetic.published import CONFIGS
from localmoe.synthetic.quantization import QUANTIZATIONS, quantization_named
from localmoe.synthetic.writer import model_nbytes, write_stand_in
from localmoe.weights.checkpoint_kind import is_safetensors

_CHECKPOINT_SOURCE = "its headers and config.json; the torch engine computes"
_SMALLER_LISTED = ("Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K", "IQ2_XXS")


@dataclass(frozen=True)
class Target:
    """A model to plan for."""

    title: str
    path: Path
    smaller: tuple[Smaller, ...] = ()
    """What it would be in smaller quantizations, where that can be told."""
    source: str = ""
    """Where the figures come from."""


@contextmanager
def plan_target(model: str, quantization: str | None) -> Iterator[Target]:
    """Yield what to plan for; what had to be written for it is removed afterwards.

    Raises SettingsError, ModelNotFoundError, and what reading a remote header raises.
    """
    path = Path(model).expanduser()
    if known_name(model) and not path.exists():
        with _known_target(config_named(model), quantization) as target:
            yield target
        return
    if quantization:
        raise SettingsError(
            f"--quant {quantization} is for known models, and {model} is none: a file has its own "
            "quantization. Leave --quant out, or name it as OWNER/REPO:QUANT"
        )
    if not path.exists() and not model.endswith(".gguf") and not typed_hub_name(model):
        raise SettingsError(_unknown(model))
    with header_file(model) as file:
        if is_safetensors(file):
            yield Target(model_title(model, file), file, source=_CHECKPOINT_SOURCE)
        else:
            yield Target(path.name, file, source="the file's header")


def default_quantization(config: Config) -> str:
    """Return in what a model is mostly run."""
    return "MXFP4" if config.architecture == "gpt-oss" else "Q4_K_M"


@contextmanager
def _known_target(config: Config, quantization: str | None) -> Iterator[Target]:
    name = quantization_named(quantization or default_quantization(config))
    with tempfile.TemporaryDirectory(prefix="localmoe-plan-") as folder:
        path = Path(folder) / "model.gguf"
        write_stand_in(path, config, name)
        yield Target(
            f"{config.name} at {name}",
            path,
            _smaller(config, name),
            "the published configuration, quantized as llama.cpp does it",
        )


def _smaller(config: Config, name: str) -> tuple[Smaller, ...]:
    if name == "MXFP4" or name not in QUANTIZATIONS:
        return ()
    names = [n for n in _SMALLER_LISTED if QUANTIZATIONS.index(n) > QUANTIZATIONS.index(name)]
    return tuple(Smaller(n, *model_nbytes(config, n)) for n in names)


def _unknown(model: str) -> str:
    near = near_names(model)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    return (
        f"{model!r} is no file, no OWNER/REPO on Hugging Face and no known model. {hint}"
        f"Known: {', '.join(CONFIGS)}"
    )
