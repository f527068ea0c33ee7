"""Write the demo model as a GGUF of architecture `deepseek`.

That graph has leading dense layers, an ungated shared expert and a softmax router whose weights are
not renormalised but multiplied by `expert_weights_scale`: with nearly equal router logits each
weight is 1/E, the scale is E, and all experts together give the dense layer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFValueType, GGUFWriter

from localmoe.demo.recipe import DENSE_LAYERS, Recipe
from localmoe.demo.source import SHA256
from localmoe.demo.tensors import DenseModel, Planned, plan_tensors
from localmoe.settings import Progress

ARCHITECTURE = "deepseek"
STAGE = "building the demo model"
MOSTLY_Q8_0 = 7  # general.file_type
SAMPLING = {"temp": 0.7, "top_p": 0.9, "min_p": 0.1}
# of the dense model; ours are different
_REPLACED = {
    "general.architecture",
    "general.file_type",
    "general.finetune",
    "general.name",
    "general.quantization_version",
    "general.type",
}


def write_model(path: Path, source: Path, recipe: Recipe, progress: Progress | None = None) -> None:
    """Write the model that the recipe makes of the dense GGUF `source`.

    Calls `progress(stage, done, total)` in bytes. Raises OSError where the disk does.
    """
    dense = DenseModel(source)
    planned = list(plan_tensors(dense, recipe))
    writer = GGUFWriter(path, ARCHITECTURE)
    try:
        _copy_metadata(writer, dense)
        _describe(writer, recipe)
        for tensor in planned:
            writer.add_tensor_info(
                tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, tensor.kind
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        _write_tensors(writer, planned, progress)
    finally:
        writer.close()


def _copy_metadata(writer: GGUFWriter, dense: DenseModel) -> None:
    """Take over tokenizer, chat template and architecture from the dense model."""
    for key, field in dense.reader.fields.items():
        if key.startswith("GGUF.") or key in _REPLACED:
            continue
        name = key.replace("llama.", f"{ARCHITECTURE}.", 1) if key.startswith("llama.") else key
        if field.types[0] == GGUFValueType.ARRAY:
            writer.add_array(name, field.contents())
        else:
            writer.add_key_value(name, field.contents(), field.types[0])


def _describe(writer: GGUFWriter, recipe: Recipe) -> None:
    """Say what the model is, how its experts are arranged and how to sample from it."""
    writer.add_type("model")
    writer.add_name(f"SmolLM2-135M-Instruct as {recipe.experts} experts, {recipe.used} active")
    writer.add_description(
        "A small demonstration model derived from SmolLM2-135M-Instruct (HuggingFaceTB, "
        "Apache-2.0): the neurons of its feed-forward layers regrouped into a shared expert and "
        "routed experts, with low-rank corrections distilled from the dense model."
    )
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, "SmolLM2-135M-Instruct")
    writer.add_base_model_organization(0, "HuggingFaceTB")
    writer.add_base_model_repo_url(0, "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct")
    writer.add_file_type(MOSTLY_Q8_0)
    writer.add_quantization_version(2)
    writer.add_string("localmoe.demo.recipe_sha256", recipe.sha256)
    writer.add_string("localmoe.demo.source_sha256", SHA256)
    for name, value in SAMPLING.items():
        writer.add_float32(f"general.sampling.{name}", value)
    counts = {
        "expert_count": recipe.experts,
        "expert_used_count": recipe.used,
        "expert_shared_count": recipe.shared // recipe.width,
        "expert_feed_forward_length": recipe.width,
        "leading_dense_block_count": DENSE_LAYERS,
    }
    for name, count in counts.items():
        writer.add_uint32(f"{ARCHITECTURE}.{name}", count)
    writer.add_float32(f"{ARCHITECTURE}.expert_weights_scale", float(recipe.experts))


def _write_tensors(writer: GGUFWriter, planned: list[Planned], progress: Progress | None) -> None:
    total, done = sum(tensor.nbytes for tensor in planned), 0
    for tensor in planned:
        if progress:
            progress(STAGE, done, total)
        writer.write_tensor_data(tensor.data())
        done += tensor.nbytes
    if progress:
        progress(STAGE, done, total)
