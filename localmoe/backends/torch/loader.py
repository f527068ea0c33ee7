"""A model with its resident weights, and without its experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.integrations.moe import ExpertsInterface
from transformers.utils import is_accelerate_available, logging

from localmoe.backends.torch.formats import DTYPES
from localmoe.backends.torch.quantizer import NAME, OnModel, ServedConfig
from localmoe.backends.torch.weight import Weight
from localmoe.backends.torch.weight_reads import LazyWeight, WeightReads
from localmoe.errors import EngineError, LocalMoeError, ModelFormatError, UnsupportedModelError


def _forward(
    module: Any, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    total: torch.Tensor = module.localmoe.forward(hidden, index, weights)
    return total


ExpertsInterface.register(NAME, _forward)


def load_resident(
    config: PretrainedConfig,
    weights: Mapping[str, Weight],
    dtype: torch.dtype,
    reads: WeightReads,
    on_model: OnModel,
) -> PreTrainedModel:
    """Build the model and load what stays in memory; `on_model` gets it before, without experts.

    It is loaded to where `reads` bring weights. Raises LocalMoeError.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    state = {
        name: LazyWeight(weight, names[weight.dtype], reads) for name, weight in weights.items()
    }
    with _quietly():
        try:
            model, info = model_class(config).from_pretrained(
                None,
                config=config,
                state_dict=state,
                dtype=dtype,
                quantization_config=ServedConfig(on_model),
                experts_implementation=NAME,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                **_where(reads.device),
                output_loading_info=True,
            )
        except LocalMoeError:
            raise
        except Exception as error:
            raise UnsupportedModelError(
                f"transformers {transformers.__version__} could not load this checkpoint as "
                f"{config.model_type}: {str(error).strip()[:400] or type(error).__name__}"
            ) from error
    _check(model, info)
    for module in model.modules():
        # Some models compute otherwise where there was a quantizer: this one changed no numbers.
        if hasattr(getattr(module, "config", None), "_is_quantized"):
            del module.config._is_quantized
    loaded: PreTrainedModel = model.eval()
    return loaded


def _where(device: torch.device | None) -> dict[str, Any]:
    """Return what tells transformers to load to a device. Raises EngineError."""
    if device is None:
        return {}
    if not is_accelerate_available():
        raise EngineError(
            "computing on a GPU needs the package accelerate: pip install 'localmoe[cuda]'"
        )
    return {"device_map": {"": device}}


def model_class(config: PretrainedConfig) -> Any:
    """Return transformers' class for a model that continues text. Raises UnsupportedModelError."""
    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return found
    mapping = AutoModelForCausalLM._model_mapping
    if type(config) in mapping:
        return mapping[type(config)]
    raise UnsupportedModelError(
        f"transformers {transformers.__version__} has no model of the architecture "
        f"{', '.join(config.architectures or ()) or config.model_type}"
    )


def _check(model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """Raise unless everything that is in the model was in the checkpoint."""
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelFormatError(
            f"the checkpoint lacks {len(missing)} of the weights that the model has, such as "
            f"{missing[0]}: it is not whole, or config.json is of another model"
        )
    if wrong := sorted(info["mismatched_keys"]):
        raise ModelFormatError(
            f"the checkpoint's {wrong[0][0]} has another shape than config.json says "
            f"({len(wrong)} of the weights have)"
        )
    left = [n for n, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    if left:
        raise UnsupportedModelError(
            f"transformers left {len(left)} tensors without values, such as {left[0]}"
        )


class _quietly:  # noqa: N801 (reads like a statement)
    """While this lasts transformers writes nothing: what matters of it is raised."""

    def __enter__(self) -> None:
        self._level = logging.get_verbosity()
        self._bars = logging.is_progress_bar_enabled()
        logging.set_verbosity(logging.CRITICAL)
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        logging.set_verbosity(self._level)
        if self._bars:
            logging.enable_progress_bar()
