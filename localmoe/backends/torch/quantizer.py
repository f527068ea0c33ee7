"""transformers' own hook for whoever brings weights of another form: here, experts that stay away.

`from_pretrained` builds the model without weights and hands it over; what is taken out then is
never loaded. See transformers' documentation of HfQuantizer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from localmoe.backends.torch.stripped import Stripped, strip

NAME = "localmoe"
OnModel = Callable[[PreTrainedModel, Stripped], None]


@register_quantization_config(NAME)
class ServedConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """Carries what is to happen once the model is there without weights."""

    def __init__(self, on_model: OnModel | None = None, **_: Any) -> None:
        self.quant_method = NAME
        self.on_model = on_model

    def to_dict(self) -> dict[str, Any]:
        """Return what describes it: functions do not."""
        return {"quant_method": NAME}


@register_quantizer(NAME)
class ServedQuantizer(HfQuantizer):  # type: ignore[misc]
    """Takes the routed experts out of a model before its weights are loaded."""

    requires_calibration = False

    @property
    def is_trainable(self) -> bool:
        """Nobody trains what is not there."""
        return False

    def is_serializable(self) -> bool:
        """Nor saves it."""
        return False

    def get_new_dtype(
        self, _converter: object, _tensor: object, dtype: torch.dtype | None
    ) -> torch.dtype | None:
        """Leave types as the model wants them."""
        return dtype

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        stripped = strip(model)
        patterns = {re.escape(name) + "$" for name in stripped.shapes}
        known = model._keys_to_ignore_on_load_unexpected or ()
        model._keys_to_ignore_on_load_unexpected = set(known) | patterns
        if self.quantization_config.on_model:
            self.quantization_config.on_model(model, stripped)
