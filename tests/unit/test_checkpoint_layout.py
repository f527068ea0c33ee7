"""Where the experts of a safetensors checkpoint lie, told by names alone: every form of storage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import raw_checkpoint as made
from localmoe.errors import (
    BudgetError,
    ModelError,
    ModelFormatError,
    SettingsError,
    UnsupportedModelError,
)
from localmoe.planning.checkpoint_plan import plan_checkpoint, smallest_checkpoint_mib
from localmoe.planning.checkpoint_work import checkpoint_work, resident_nbytes
from localmoe.settings import Settings
from localmoe.weights.checkpoint_description import describe_checkpoint, describe_stored_tensors
from localmoe.weights.checkpoint_layout import CheckpointLayout, read_layout
from raw_checkpoint import EXPERTS, HIDDEN, LAYERS, USED, WIDTH, Tensors

PER_EXPERT = 3 * HIDDEN * WIDTH
"""Numbers of an expert: gate, up and down."""
ATTENTION = 2 * (made.HEADS + made.KEPT_HEADS) * made.HEAD * HIDDEN
RESIDENT = 2 * made.VOCABULARY * HIDDEN + LAYERS * (ATTENTION + EXPERTS * HIDDEN + HIDDEN)
"""Numbers that every token may use."""


def layout_of(
    folder: Path, tensors: Tensors | None = None, config: dict[str, Any] | None = None
) -> CheckpointLayout:
    return read_layout(made.write(folder / "model", tensors, config))


def fp8(name: str, rows: int, columns: int) -> Tensors:
    grid = (-(-rows // 128), -(-columns // 128))
    codes = {f"{name}.weight": ("F8_E4M3", (rows, columns))}
    return {**codes, f"{name}.weight_scale_inv": ("F32", grid)}


def fp8_row(name: str, rows: int, columns: int) -> Tensors:
    codes = {f"{name}.weight": ("F8_E4M3", (rows, columns))}
    return {
        **codes,
        f"{name}.weight_scale": ("BF16", (rows, 1)),
        f"{name}.input_scale": ("F32", ()),
    }


def int4(name: str, rows: int, columns: int) -> Tensors:
    return {
        f"{name}.weight_packed": ("I32", (rows, columns // 8)),
        f"{name}.weight_scale": ("BF16", (rows, columns // 32)),
        f"{name}.weight_shape": ("I64", (2,)),
    }


def nvfp4(name: str, rows: int, columns: int) -> Tensors:
    return {
        f"{name}.weight_packed": ("U8", (rows, columns // 2)),
        f"{name}.weight_scale": ("F8_E4M3", (rows, columns // 16)),
        f"{name}.weight_global_scale": ("F32", (1,)),
    }


def nvfp4_modelopt(name: str, rows: int, columns: int) -> Tensors:
    return {
        f"{name}.weight": ("U8", (rows, columns // 2)),
        f"{name}.weight_scale": ("F8_E4M3", (rows, columns // 16)),
        f"{name}.weight_scale_2": ("F32", ()),
        f"{name}.input_scale": ("F32", ()),
    }


def mxfp4(name: str, rows: int, columns: int) -> Tensors:
    return {
        f"{name}.weight_packed": ("U8", (rows, columns // 2)),
        f"{name}.weight_scale": ("U8", (rows, columns // 32)),
    }


@pytest.mark.parametrize(
    ("encoded", "kind", "nbytes"),
    [
        (made.plain, "BF16", 2 * PER_EXPERT),
        (fp8, "FP8", PER_EXPERT + 3 * 4),
        (fp8_row, "FP8", PER_EXPERT + (2 * WIDTH + HIDDEN) * 2),
        (int4, "INT4", PER_EXPERT // 2 + PER_EXPERT // 32 * 2),
        (nvfp4, "NVFP4", PER_EXPERT // 2 + PER_EXPERT // 16 + 3 * 4),
        (nvfp4_modelopt, "NVFP4", PER_EXPERT // 2 + PER_EXPERT // 16 + 3 * 4),
        (mxfp4, "MXFP4", PER_EXPERT // 2 + PER_EXPERT // 32),
    ],
)
def test_experts_stored_one_by_one(
    tmp_path: Path, encoded: Callable[[str, int, int], Tensors], kind: str, nbytes: int
) -> None:
    layout = layout_of(tmp_path, {**made.resident(), **made.experts(encoded)})
    catalog = layout.catalog
    assert [layer.layer for layer in catalog.layers] == [0, 1, 2]
    for layer in catalog.layers:
        assert (layer.n_experts, layer.n_experts_used) == (EXPERTS, USED)
        assert layer.expert_nbytes == nbytes
        assert len(layer.parts) == 2
    assert catalog.resident_nbytes == resident_nbytes(layout) == 2 * RESIDENT
    work = checkpoint_work(layout)
    assert work.routed == {kind: LAYERS * USED * nbytes}
    assert work.resident == {"BF16": 2 * (RESIDENT - made.VOCABULARY * HIDDEN)}
    # Multiplications and additions do not depend on how numbers are stored.
    numbers = LAYERS * USED * PER_EXPERT + RESIDENT - made.VOCABULARY * HIDDEN
    assert sum(map(work.operations, work.types)) == pytest.approx(2 * numbers)
    answer = describe_checkpoint(layout)
    assert answer["parameters"] == RESIDENT + LAYERS * EXPERTS * PER_EXPERT
    tiers = {row["tensor"]: row["tier"] for row in describe_stored_tensors(layout)}
    unused = {name for name in tiers if name.endswith(("input_scale", "weight_shape"))}
    assert {name for name, tier in tiers.items() if tier == "unused"} == unused
    assert {name for name, tier in tiers.items() if tier == "routed"} == {
        name for name in tiers if ".experts." in name
    } - unused


def test_every_expert_lies_where_its_tensors_do(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, {**made.resident(), **made.experts(int4)})
    for layer in layout.catalog.layers:
        for expert in range(EXPERTS):
            stem = f"model.layers.{layer.layer}.mlp.experts.{expert}"
            wanted = {
                layout.tensors[f"{stem}.{matrix}_proj.weight_{end}"].extent
                for matrix in ("gate", "up", "down")
                for end in ("packed", "scale")
            }
            found = [e for part in layer.parts for e in part.expert_pieces(expert)]
            assert set(found) == wanted
            assert len(found) == len(wanted)


def test_what_is_resident_and_encoded_counts_as_it_is_computed_with(tmp_path: Path) -> None:
    tensors = {**made.resident(), **made.experts(fp8)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}.self_attn.q_proj"
        del tensors[f"{name}.weight"]
        tensors |= fp8(name, made.HEADS * made.HEAD, HIDDEN)
    layout = layout_of(tmp_path, tensors)
    less = LAYERS * (made.HEADS * made.HEAD * HIDDEN - 4)
    assert resident_nbytes(layout) == 2 * RESIDENT
    assert layout.catalog.resident_nbytes == 2 * RESIDENT - less
    in_float32 = layout_of(tmp_path / "f32", tensors, {"dtype": "float32"})
    assert resident_nbytes(in_float32) - resident_nbytes(layout) == LAYERS * 2 * HIDDEN * 64


def stacked(end: str = "", bias: bool = False) -> Tensors:
    tensors = made.resident()
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}.mlp.experts"
        tensors[f"{stem}.gate_up_proj{end}"] = ("BF16", (EXPERTS, 2 * WIDTH, HIDDEN))
        tensors[f"{stem}.down_proj{end}"] = ("BF16", (EXPERTS, HIDDEN, WIDTH))
        tensors[f"{stem}.post_expert_norm.weight"] = ("BF16", (HIDDEN,))
        if bias:
            tensors[f"{stem}.gate_up_proj_bias"] = ("BF16", (EXPERTS, 2 * WIDTH))
            tensors[f"{stem}.down_proj_bias"] = ("BF16", (EXPERTS, HIDDEN))
    return tensors


@pytest.mark.parametrize(("end", "bias"), [("", False), (".weight", False), ("", True)])
def test_experts_stored_in_one_tensor(tmp_path: Path, end: str, bias: bool) -> None:
    layout = layout_of(tmp_path, stacked(end, bias))
    layer = layout.catalog.layers[1]
    more = 2 * (2 * WIDTH + HIDDEN) if bias else 0
    assert layer.expert_nbytes == 2 * PER_EXPERT + more
    whole = layout.tensors[f"model.layers.1.mlp.experts.down_proj{end}"].extent
    pieces = [layer.parts[1].expert_pieces(expert)[0] for expert in range(EXPERTS)]
    step = 2 * HIDDEN * WIDTH
    assert [piece.offset for piece in pieces] == [whole.offset + n * step for n in range(EXPERTS)]
    assert layout.catalog.resident_nbytes == 2 * (RESIDENT + LAYERS * HIDDEN)


def test_blocks_and_scales_of_all_experts(tmp_path: Path) -> None:
    tensors = made.resident()
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}.mlp.experts"
        for name, rows, columns in (("gate_up_proj", 2 * WIDTH, HIDDEN), ("down_proj", HIDDEN, 32)):
            tensors[f"{stem}.{name}_blocks"] = ("U8", (EXPERTS, rows, columns // 32, 16))
            tensors[f"{stem}.{name}_scales"] = ("U8", (EXPERTS, rows, columns // 32))
            tensors[f"{stem}.{name}_bias"] = ("BF16", (EXPERTS, rows))
    layout = layout_of(tmp_path, tensors)
    encoded = PER_EXPERT // 2 + PER_EXPERT // 32
    assert layout.catalog.layers[0].expert_nbytes == encoded + 2 * (2 * WIDTH + HIDDEN)
    routed = checkpoint_work(layout).routed
    assert routed["MXFP4"] == LAYERS * USED * encoded


def test_layers_that_predict_further_tokens_are_not_used(tmp_path: Path) -> None:
    beyond = {
        name.replace(".layers.0.", f".layers.{LAYERS}."): value
        for name, value in {**made.resident(), **made.experts()}.items()
        if ".layers.0." in name
    }
    further = {f"mtp.{name}": value for name, value in beyond.items()}
    tensors = {**made.resident(), **made.experts(), **beyond, **further}
    catalog = layout_of(tmp_path, tensors).catalog
    assert len(catalog.layers) == LAYERS
    assert catalog.resident_nbytes == 2 * RESIDENT
    assert {tensor.name for tensor in catalog.unused} == {*beyond, *further}


def test_a_dense_model_has_no_layers_of_experts(tmp_path: Path) -> None:
    layout = layout_of(
        tmp_path, made.resident(), {"num_experts": None, "num_experts_per_tok": None}
    )
    assert layout.catalog.layers == ()
    assert describe_checkpoint(layout)["experts_per_layer"] == 0


def test_a_plan_needs_experts_and_options_of_the_engine(tmp_path: Path) -> None:
    dense = made.write(tmp_path / "dense", made.resident(), {"num_experts": None})
    with pytest.raises(UnsupportedModelError, match="has no routed experts"):
        plan_checkpoint(dense, Settings(threads=1), 1 << 30)
    folder = made.write(tmp_path / "model")
    for values in ({"kv_type": "q8_0"}, {"experts_used": 1}, {"mirrors": ("x",)}):
        with pytest.raises(SettingsError, match="is for GGUF files"):
            plan_checkpoint(folder, Settings(**values), 1 << 30)  # type: ignore[arg-type]
    smallest = smallest_checkpoint_mib(folder, Settings(threads=1))
    with pytest.raises(BudgetError, match=f"Use --memory {smallest}MiB"):
        plan_checkpoint(folder, Settings(threads=1), (smallest - 1) << 20)
    plan = plan_checkpoint(folder, Settings(threads=1), smallest << 20).slot_plan.plan
    assert plan.total_bytes <= smallest << 20
    fixed = plan_checkpoint(folder, Settings(threads=1, slots=7), 1 << 30).slot_plan.plan
    assert (fixed.slots, fixed.streams) == (7, True)


def gptq(name: str, rows: int, columns: int) -> Tensors:
    return {f"{name}.qweight": ("I32", (columns // 8, rows)), f"{name}.scales": ("F16", (1, rows))}


def int8(name: str, rows: int, columns: int) -> Tensors:
    return {f"{name}.weight": ("I8", (rows, columns)), f"{name}.weight_scale": ("BF16", (rows, 1))}


def renamed(old: str, new: str) -> Tensors:
    return {name.replace(old, new): value for name, value in made.experts().items()}


def without(end: str) -> Tensors:
    return {name: value for name, value in made.experts().items() if not name.endswith(end)}


def with_one(end: str, shape: tuple[int, ...]) -> Tensors:
    return {
        name: ("BF16", shape) if name.endswith(end) else value
        for name, value in made.experts().items()
    }


@pytest.mark.parametrize(
    ("experts", "config", "error", "reason"),
    [
        (made.experts(gptq), {}, UnsupportedModelError, "in a way that is not known here"),
        (made.experts(int8), {}, UnsupportedModelError, r"\(I8, shape"),
        (renamed("gate_proj", "wide_proj"), {}, UnsupportedModelError, "wide_proj"),
        (renamed(".experts.", ".specialists."), {}, UnsupportedModelError, "has 4 experts, but no"),
        (without("experts.2.up_proj.weight"), {}, ModelFormatError, r"lacks expert 2 of 4 \(up\)"),
        (without("down_proj.weight"), {}, ModelFormatError, "but has 0"),
        (without("up_proj.weight"), {}, ModelFormatError, r"\['down', 'gate'\]"),
        (with_one("1.up_proj.weight", (8, 8)), {}, ModelFormatError, "differ in shape or type"),
        (made.experts(), {"num_experts": 3}, ModelFormatError, "says that there are 3"),
        (made.experts(), {"num_experts_per_tok": None}, ModelFormatError, "how many experts a"),
        (made.experts(), {"model_type": None}, ModelFormatError, "should name the model's kind"),
    ],
)
def test_what_is_not_known_is_one_clear_error(
    tmp_path: Path, experts: Tensors, config: dict[str, Any], error: type[ModelError], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        layout_of(tmp_path, {**made.resident(), **experts}, config)


def test_stacked_experts_must_have_one_row_each(tmp_path: Path) -> None:
    tensors = stacked()
    tensors["model.layers.1.mlp.experts.gate_up_proj"] = ("BF16", (2, WIDTH, HIDDEN))
    with pytest.raises(ModelFormatError, match="the first dimension should be that of the 4"):
        layout_of(tmp_path, tensors)
    tensors["model.layers.1.mlp.experts.down_proj"] = ("BF16", (0, HIDDEN, WIDTH))
    with pytest.raises(ModelFormatError, match="should have 1 to 4096 experts.* but has 0"):
        layout_of(tmp_path / "none", tensors)


def test_templates_come_from_where_they_are(tmp_path: Path) -> None:
    folder = made.write(tmp_path / "model")
    answer = describe_checkpoint(read_layout(folder))
    assert (answer["chat_template"], answer["tokenizer"]) == (made.TEMPLATE, "Made")
    assert answer["sampling"] == {"temp": 0.6, "top_k": 20}
    (folder / "chat_template.jinja").unlink()
    assert describe_checkpoint(read_layout(folder))["chat_template"] is None
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert describe_checkpoint(read_layout(folder))["chat_template"] == "d"
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelFormatError, match="is not JSON"):
        describe_checkpoint(read_layout(folder))
