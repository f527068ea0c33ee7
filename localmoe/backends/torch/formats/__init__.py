"""How weights lie in safetensors checkpoints, and how they become matrices of the compute type.

    form = format_of("model.layers.3.mlp.experts.7.up_proj.weight", header, quantization_config)
    form.tensor_names(...)                # what to read: one tensor, or codes and their scales
    form.decode(stored_tensors, out)      # out [rows, columns] in the compute type

Each format is told, byte by byte, in docs/formats.md.
"""

from __future__ import annotations

from localmoe.backends.torch.formats.format import DTYPES, Format, Stored, StoredTensor
from localmoe.backends.torch.formats.recognition import format_of

__all__ = ["DTYPES", "Format", "Stored", "StoredTensor", "format_of"]
