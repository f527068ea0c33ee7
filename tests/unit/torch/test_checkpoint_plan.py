"""A plan from headers says what the torch engine finds by asking transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

import zoo_torch
from localmoe.backends.torch.footprint import footprints
from localmoe.backends.torch.load import load
from localmoe.backends.torch.loader import NAME, model_class
from localmoe.backends.torch.source import TorchSource, find_experts, open_checkpoint
from localmoe.backends.torch.stripped import strip
from localmoe.errors import ModelError
from localmoe.planning.checkpoint_plan import plan_checkpoint
from localmoe.planning.checkpoint_work import checkpoint_work, resident_nbytes
from localmoe.planning.kept_context import kept_context
from localmoe.planning.step_bytes import step_nbytes
from localmoe.settings import Settings
from localmoe.weights.catalog import Catalog, Extent
from localmoe.weights.checkpoint_config import CheckpointConfig
from localmoe.weights.checkpoint_layout import CheckpointLayout, read_layout
from localmoe.weights.safetensors import StoredTensor
from localmoe.weights.stored_weights import stored_weights
from zoo_torch.configuration import tiny_config
from zoo_torch.formats import quantization_config, store

EACH_KIND = (
    *("f32", "fp8-block", "fp8-channel", "int4-g32", "int4-channel-asymmetric", "nvfp4"),
    *("nvfp4-modelopt", "mxfp4-packed"),
)
"""Formats of which each has other tensors."""
REFUSED = ("ernie4_5_vl_moe", "minimax", "qwen3_omni_moe_thinker")
TYPES = sorted(set(zoo_torch.TINY) - set(REFUSED))
WIDE = {"hidden_size": 256, "moe_intermediate_size": 128, "head_dim": 32}


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.disable_progress_bar()


def on_meta(config: Any, dtype: torch.dtype) -> PreTrainedModel:
    config._experts_implementation = NAME
    with torch.device("meta"):
        model: PreTrainedModel = model_class(config)._from_config(config, dtype=dtype)
    return model.eval()


def torch_source(folder: Path) -> TorchSource:
    """Return what the torch engine knows before it reads weights."""
    checkpoint = open_checkpoint(folder)
    model = on_meta(checkpoint.config.config, checkpoint.dtype)
    source = find_experts(checkpoint, model, strip(model))
    source.close()
    return source


def check(folder: Path) -> CheckpointLayout:
    """Compare catalogs: to the byte, and to the place of every piece."""
    source, layout = torch_source(folder), read_layout(folder)
    theirs, ours = source.catalog, layout.catalog
    assert ours.expert_nbytes == theirs.expert_nbytes > 0
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        assert (one.layer, one.n_experts) == (other.layer, other.n_experts)
        assert (one.n_experts_used, one.part_nbytes) == (other.n_experts_used, other.part_nbytes)
        for part, wanted in zip(one.parts, other.parts, strict=True):
            for expert in range(one.n_experts):
                assert set(part.expert_pieces(expert)) == set(wanted.expert_pieces(expert))
    assert ours.resident_nbytes == pytest.approx(theirs.resident_nbytes, rel=0.01)
    assert resident_nbytes(layout) == pytest.approx(source.resident_nbytes, rel=0.01)
    return layout


@pytest.mark.parametrize("name", TYPES)
def test_every_type_is_laid_out_as_transformers_would(tmp_path: Path, name: str) -> None:
    layout = check(zoo_torch.write(tmp_path, name))
    planned = plan_checkpoint(tmp_path, Settings(context_tokens=64, threads=1), 2 << 30)
    plan = planned.slot_plan.plan
    assert plan.resident_bytes == resident_nbytes(layout)
    assert plan.slot_bytes >= layout.catalog.expert_nbytes
    assert plan.experts == plan.slots == layout.catalog.n_experts_total


@pytest.mark.parametrize("slots", [None, 7])
def test_a_plan_is_what_loading_plans(tmp_path: Path, slots: int | None) -> None:
    zoo_torch.write(tmp_path, "deepseek_v3")
    zoo_torch.write_tokenizer(tmp_path)
    settings = Settings(4 << 30, 128, threads=1, slots=slots, device="cpu")
    with load(tmp_path, settings) as engine:
        plan = engine.plan
    planned = plan_checkpoint(tmp_path, settings, 4 << 30).slot_plan.plan
    for name in ("resident_bytes", "slots", "experts", "slot_bytes", "context_tokens", "kv_bytes"):
        assert getattr(planned, name) == getattr(plan, name), name
    assert planned.prefill_chunk_tokens == plan.prefill_chunk_tokens


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_engine_refuses_has_no_plan(tmp_path: Path, name: str) -> None:
    zoo_torch.write(tmp_path, name)
    with pytest.raises(ModelError, match="cannot be streamed|one size is expected in a layer"):
        plan_checkpoint(tmp_path, Settings(context_tokens=64, threads=1), 2 << 30)


@pytest.mark.parametrize("format_name", EACH_KIND)
def test_every_format_has_the_engine_s_bytes(tmp_path: Path, format_name: str) -> None:
    config = tiny_config("qwen3_moe")
    for key, value in WIDE.items():
        setattr(config, key, value)
    with torch.random.fork_rng(devices=[]):
        model_class(config)._from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    _encode(tmp_path, "proj.weight", format_name)
    work = checkpoint_work(check(tmp_path))
    kind = format_name.split("-")[0].upper()
    assert set(work.routed) == {kind}
    assert work.routed[kind] * work.numbers_per_byte[kind] == pytest.approx(
        3 * 4 * 3 * 256 * 128
    )  # layers, experts of a token, matrices


def test_gpt_oss_with_its_own_blocks(tmp_path: Path) -> None:
    config = tiny_config("gpt_oss")
    config.hidden_size = config.intermediate_size = 64
    with torch.random.fork_rng(devices=[]):
        model_class(config)._from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    _encode(tmp_path, ("experts.gate_up_proj", "experts.down_proj"), "mxfp4")
    assert set(checkpoint_work(check(tmp_path)).routed) == {"MXFP4", "BF16"}  # biases are plain


def _encode(folder: Path, ends: str | tuple[str, ...], format_name: str) -> None:
    """Store the weights with such names in a format."""
    encoded = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        stored = store(name, tensor, format_name) if name.endswith(ends) else {name: tensor}
        encoded |= {key: value.contiguous().clone() for key, value in stored.items()}
    save_file(encoded, folder / "model.safetensors", {"format": "pt"})
    said = json.loads((folder / "config.json").read_text())
    said["quantization_config"] = quantization_config(format_name)
    (folder / "config.json").write_text(json.dumps(said))


GROUPED = {"num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"hidden_size": 2048, **GROUPED},
    "deepseek_v3": {},
    "deepseek_v32": {},
    "gpt_oss": {"hidden_size": 2880, "num_attention_heads": 64, "sliding_window": 128},
    "afmoe": {"hidden_size": 2048, "sliding_window": 512, "intermediate_size": 6144, **GROUPED},
}
"""Published shapes, or the class's own where those are the published ones."""


@pytest.mark.parametrize("name", SHAPES)
def test_context_and_steps_are_what_the_engine_sets_aside(name: str) -> None:
    config: PretrainedConfig = CONFIG_MAPPING[name](num_hidden_layers=4, **SHAPES[name])
    model, context = on_meta(config, torch.bfloat16), 2048
    stripped = strip(model)
    layout = _layout_of(model)
    found = footprints(model, stripped, context)
    kept = kept_context(layout, context)
    assert kept.nbytes == pytest.approx(found[0].kv_bytes, rel=0.05)
    for footprint in (found[0], found[-1]):
        step = step_nbytes(layout, context, footprint.chunk_tokens)
        assert step == pytest.approx(footprint.compute_bytes, rel=0.25, abs=8 << 20)


@pytest.mark.parametrize(("name", "found"), [("qwen3_moe", 8.0), ("deepseek_v3", 1.0)])
def test_query_heads_for_each_key_head(name: str, found: float) -> None:
    config: PretrainedConfig = CONFIG_MAPPING[name](num_hidden_layers=4, **SHAPES[name])
    model = on_meta(config, torch.bfloat16)
    strip(model)
    assert checkpoint_work(_layout_of(model)).queries_per_key == found


def _layout_of(model: PreTrainedModel) -> CheckpointLayout:
    """Return the layout of a checkpoint of this model, but for its experts."""
    tensors = {
        name: StoredTensor(name, "BF16", tuple(p.shape), Extent("none", 0, 2 * p.numel()))
        for name, p in model.named_parameters()
    }
    config = CheckpointConfig("config.json", model.config.to_dict())
    weights, _ = stored_weights(tensors)
    catalog = Catalog(config.model_type, (), (), ())
    return CheckpointLayout(config, tensors, catalog, tuple(weights), {}, "model.layers")
