"""A config.json that lies, or is none, is refused before anything is done with its numbers."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import raw_checkpoint as made
from localmoe.backends.generation import read_generation_config
from localmoe.errors import LocalMoeError, ModelError, ModelFormatError, ModelNotFoundError
from localmoe.planning.checkpoint_plan import plan_checkpoint
from localmoe.settings import Settings

SETTINGS = Settings(context_tokens=4096, threads=1)
BUDGET = 4 << 30


@pytest.mark.parametrize("value", [-1, 10**30, 1.5, "many", True, {}, [3, "x"], [-1], 1 << 62])
@pytest.mark.parametrize(
    "name",
    [
        *("num_hidden_layers", "num_experts", "num_experts_per_tok", "max_position_embeddings"),
        *("num_attention_heads", "hidden_size", "head_dim", "intermediate_size"),
    ],
)
def test_numbers_that_cannot_be(tmp_path: Path, name: str, value: Any) -> None:
    folder = made.write(tmp_path, config={name: value})
    with pytest.raises(ModelFormatError, match=f"{name} should be a number from 0 to") as error:
        plan_checkpoint(folder, SETTINGS, BUDGET)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize(
    "values",
    [
        {"num_attention_heads": 1 << 30, "head_dim": 1 << 30, "hidden_size": 1 << 30},
        {"layer_types": ["sliding_attention"] * 100_000, "sliding_window": 1 << 30},
        {"layer_types": {"a": 1}, "compress_rates": [1]},
        {"compress_rates": {"full_attention": -4}, "layer_types": ["full_attention"] * 3},
        {"compress_rates": {"full_attention": 10**40}, "layer_types": ["full_attention"] * 3},
        {"linear_attn_config": {"num_heads": 1 << 30, "head_dim": 1 << 30}},
        {"index_n_heads": 1 << 30},
        {"text_config": {"text_config": {"num_experts_per_tok": 2}}},
        {"quantization_config": "fp8", "dtype": ["bfloat16"]},
        {"num_hidden_layers": 0, "num_attention_heads": 0},
        {"sliding_window": 0, "layer_types": ["sliding_attention"] * 3},
    ],
)
def test_numbers_that_might_be_give_a_plan_or_one_error(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    folder = made.write(tmp_path, config=values)
    tracemalloc.start()
    try:
        total_bytes = plan_checkpoint(folder, SETTINGS, BUDGET).slot_plan.plan.total_bytes
    except LocalMoeError as error:
        total_bytes, message = BUDGET, str(error)
    else:
        message = ""
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert 0 < total_bytes <= BUDGET
    assert "\n" not in message
    assert peak < 32 << 20


@pytest.mark.parametrize(
    ("text", "error", "reason"),
    [
        (None, ModelNotFoundError, "cannot read .*config.json"),
        (b"", ModelFormatError, "is not JSON"),
        (b"[]", ModelFormatError, "holds no JSON object but a list"),
        (b"[" * 100_000, ModelFormatError, "is not JSON"),
        (b'{"model_type": ' + b"9" * 5000 + b"}", ModelFormatError, "is not JSON"),
        (b'{"model_type": "a\x1b[2J"}', ModelFormatError, "is not JSON"),
        (b'{"model_type": "a\\u001b[2J"}', ModelFormatError, "should name the model's kind"),
        (b"\xff\xfe{}", ModelFormatError, "is not JSON"),
        (b" " * (16 << 20) + b"{}", ModelFormatError, "is longer than"),
    ],
)
def test_a_configuration_that_is_none(
    tmp_path: Path, text: bytes | None, error: type[ModelError], reason: str
) -> None:
    folder = made.write(tmp_path)
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_bytes(text)
    with pytest.raises(error, match=reason):
        plan_checkpoint(folder, SETTINGS, BUDGET)


def test_no_name_of_a_tensor_is_too_odd(tmp_path: Path) -> None:
    one = "\u0661"  # a digit, but not of the kind that names have
    odd = (
        *("experts.", "experts.0", ".experts.1.", one, "", "layers.999999.k_proj.weight"),
        *(f"model.layers.{one}.k_proj.weight", f"model.layers.{'9' * 900}.k_proj.weight"),
    )
    tensors = {**made.resident(), **made.experts(), **{f"{n}.": ("BF16", (1,)) for n in odd}}
    planned = plan_checkpoint(made.write(tmp_path, tensors), SETTINGS, BUDGET)
    assert [layer.layer for layer in planned.catalog.layers] == [0, 1, 2]
    for name in (f"model.layers.0.mlp.experts.{one}.down_proj.weight", "experts.1e3.w1.weight"):
        more = {**tensors, name: ("BF16", (made.HIDDEN, made.WIDTH))}
        with pytest.raises(ModelError, match="in a way that is not known here"):
            plan_checkpoint(made.write(tmp_path, more), SETTINGS, BUDGET)


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000])
def test_what_generation_asks_for_may_be_damaged(tmp_path: Path, text: str) -> None:
    assert read_generation_config(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ModelFormatError):
        read_generation_config(tmp_path)
