"""The tiny checkpoints are worth testing with, and docs/torch-models.md is right about them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ExpertsInterface
from transformers.models.auto.configuration_auto import model_type_to_module_name

import zoo_torch
from zoo_torch.cropping import logits_behind_crop
from zoo_torch.facts import Facts
from zoo_torch.left_out import LEFT_OUT
from zoo_torch.routing import experts_of, handed_over, routing

TOKENS = [(7 * n + 3) % zoo_torch.VOCABULARY for n in range(24)]
CLOSE = 1e-4
"""Of logits around 1 in float32: far above rounding, far below another expert's."""

each_type = pytest.mark.parametrize("model_type", zoo_torch.TINY)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("zoo-torch")

    @cache
    def path(model_type: str) -> Path:
        return zoo_torch.write(folder / model_type, model_type)

    return path


@pytest.fixture(scope="module")
def model_of(checkpoint: Callable[[str], Path]) -> Callable[[str], PreTrainedModel]:
    """Return a function from a type to its model in float32, read once and given back as it was."""

    @cache
    def model(model_type: str) -> PreTrainedModel:
        return zoo_torch.stock(checkpoint(model_type), torch.float32, "eager")

    return model


Models = Callable[[str], PreTrainedModel]


def prefill(model: nn.Module) -> Tensor:
    return zoo_torch.logits_of(model, TOKENS, 0)


def test_every_modelling_file_with_experts_has_a_type_or_a_reason() -> None:
    files = Path(transformers.__file__).parent.glob("models/*/modeling_*.py")
    marked = {f.parent.name for f in files if "@use_experts_implementation" in f.read_text()}
    inner = [shape.text_type or shape.read_as for shape in zoo_torch.TINY.values()]
    present = {model_type_to_module_name(name) for name in {*zoo_torch.TINY, *inner} if name}
    assert sorted(marked - present - LEFT_OUT.keys()) == []
    assert sorted(LEFT_OUT.keys() & present) == [], "both there and left out"
    assert sorted(LEFT_OUT.keys() - marked) == [], "has no experts to stream"


def test_the_page_has_every_type_in_order() -> None:
    assert list(zoo_torch.facts()) == list(zoo_torch.TINY) == sorted(zoo_torch.TINY)


@each_type
def test_the_page_knows_the_modules(model_type: str, model_of: Models) -> None:
    model, facts = model_of(model_type), zoo_torch.facts()[model_type]
    assert type(model).__name__ == facts.architecture
    attention: Any = model.config.get_text_config()
    assert attention._attn_implementation == facts.attention
    within_reach = [type(m).__name__ for m in model.modules() if hasattr(m, "_is_expert_parallel")]
    assert set(within_reach) == ({facts.experts} if facts.interface else set())
    assert {layout_of(module) for module in experts_of(model, facts).values()} == {facts.layout}


def layout_of(experts: Any) -> frozenset[str]:
    """Return the page's words for how these modules hold their weights."""
    stored = dict(experts.named_parameters())
    inner = experts.hidden_dim if hasattr(experts, "hidden_dim") else experts.hidden_size
    flags = {
        "gate_up": "gate_up_proj" in stored,
        "up": "up_proj" in stored,
        "transposed": stored["down_proj"].shape[2] == inner != stored["down_proj"].shape[1],
        "interleaved": not getattr(experts, "is_concatenated", True),
        "bias": "down_proj_bias" in stored,
        "norm": hasattr(experts, "post_expert_norm"),
        "own gate": getattr(experts, "_apply_gate", _chunked).__name__ not in _CHUNKED,
    }
    return frozenset(word for word, holds in flags.items() if holds)


def _chunked() -> None:
    """Stand in where a class has no gate of its own."""


_CHUNKED = {_chunked.__name__, "_default_apply_gate"}


@each_type
def test_the_page_knows_the_tensors(
    model_type: str, checkpoint: Callable[[str], Path], model_of: Models
) -> None:
    facts = zoo_torch.facts()[model_type]
    with safe_open(checkpoint(model_type) / "model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    kinds = {name: re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in shapes}
    assert facts.tensors <= set(kinds.values())
    in_file = sum(math.prod(shapes[n]) for n, kind in kinds.items() if kind in facts.tensors)
    modules = experts_of(model_of(model_type), facts).values()
    assert in_file == sum(weight.numel() for m in modules for weight in m.parameters())


@each_type
def test_tokens_spread_over_experts(model_type: str, model_of: Models) -> None:
    facts = zoo_torch.facts()[model_type]
    choices = routing(model_of(model_type), facts, TOKENS)
    assert choices
    for path, ids in choices.items():
        used = ids[ids < zoo_torch.EXPERTS]  # longcat_flash has further ids, without weights
        assert len(used.unique()) >= zoo_torch.EXPERTS // 2, path
        assert len(ids.unique(dim=0)) > 3, path


@each_type
def test_routers_say_what_experts_get(model_type: str, model_of: Models) -> None:
    model, facts = model_of(model_type), zoo_torch.facts()[model_type]
    handed = handed_over(model, facts, TOKENS)
    if facts.experts == "Llama4TextExperts":  # they get every token
        assert handed == {}
        return
    said = routing(model, facts, TOKENS)
    assert said.keys() == handed.keys()
    assert all(torch.equal(said[path], handed[path]) for path in said)


@each_type
def test_a_zeroed_expert_shows(model_type: str, model_of: Models) -> None:
    model, facts = model_of(model_type), zoo_torch.facts()[model_type]
    whole = prefill(model)
    for path, ids in routing(model, facts, TOKENS).items():
        used = int(ids[ids < zoo_torch.EXPERTS].mode().values)
        weight: Any = model.get_submodule(path).get_parameter("down_proj")
        before = weight[used].clone()
        with torch.no_grad():
            weight[used] = 0
            without = prefill(model)
            weight[used] = before
        assert (without - whole).abs().max() > 100 * CLOSE, path


@each_type
def test_stock_implementations_differ_by_what_the_page_says(
    model_type: str, checkpoint: Callable[[str], Path], model_of: Models
) -> None:
    path, facts = checkpoint(model_type), zoo_torch.facts()[model_type]
    eager, grouped = (
        zoo_torch.stock(path, torch.bfloat16, name) for name in ("eager", "grouped_mm")
    )
    # On another processor single tokens may go to other experts.
    assert (prefill(eager).float() - prefill(grouped).float()).abs().mean() < 0.1
    exact = zoo_torch.stock(path, torch.float32, "grouped_mm")
    difference = (prefill(exact) - prefill(model_of(model_type))).abs().max()
    assert difference <= max(2 * facts.float32_difference, 1e-5)
    asked = {m.config._experts_implementation for m in reachable(exact)}
    assert asked == ({"grouped_mm"} if facts.interface else set())


def reachable(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "_is_expert_parallel")]


@each_type
def test_the_page_knows_whether_prompts_may_come_in_chunks(
    model_type: str, model_of: Models
) -> None:
    model = model_of(model_type)
    at_once, in_two = (zoo_torch.logits_of(model, TOKENS, 4, chunk=n) for n in (0, 12))
    same = bool((at_once - in_two).abs().max() < CLOSE)
    assert same == zoo_torch.facts()[model_type].chunks


@each_type
def test_the_page_knows_whether_caches_go_back(model_type: str, model_of: Models) -> None:
    model = model_of(model_type)
    can = {"always": True, "recorded": True, "no": False}[zoo_torch.facts()[model_type].crop]
    assert can_crop(model, recorded=True) == can
    if can:
        always = zoo_torch.facts()[model_type].crop == "always"
        assert can_crop(model, recorded=False) == always


def can_crop(model: nn.Module, *, recorded: bool) -> bool:
    try:
        straight, back = (
            logits_behind_crop(model, TOKENS, 17, recorded=recorded, detour=detour)
            for detour in (False, True)
        )
    except RuntimeError:
        return False
    return bool((straight - back).abs().max() < CLOSE)


@pytest.mark.parametrize("model_type", ["llama4_text", "longcat_flash", "step3p7"])
def test_what_the_interface_does_not_reach_takes_any_name(
    model_type: str, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> Tensor:
        raise AssertionError("called")

    assert not zoo_torch.facts()[model_type].interface
    monkeypatch.setitem(ExpertsInterface._global_mapping, "never", never)
    architecture = getattr(transformers, zoo_torch.facts()[model_type].architecture)
    model = architecture.from_pretrained(
        checkpoint(model_type), dtype=torch.float32, experts_implementation="never"
    )
    assert prefill(model).isfinite().all()


@each_type
def test_a_checkpoint_is_small(model_type: str, checkpoint: Callable[[str], Path]) -> None:
    assert sum(file.stat().st_size for file in checkpoint(model_type).iterdir()) < 2_000_000
    said = json.loads((checkpoint(model_type) / "config.json").read_text())
    assert said["model_type"] == model_type


@pytest.mark.parametrize("model_type", ["deepseek_v4", "qwen3_moe"])
def test_the_same_seed_gives_the_same_bytes(model_type: str, tmp_path: Path) -> None:
    seeds = {"one": 0, "again": 0, "other": 1}
    one, again, other = (
        (zoo_torch.write(tmp_path / name, model_type, seed=seed) / "model.safetensors").read_bytes()
        for name, seed in seeds.items()
    )
    assert one == again
    assert one != other


def test_shards_hold_the_same_model(tmp_path: Path, model_of: Models) -> None:
    path = zoo_torch.write(tmp_path, "qwen3_moe", max_shard_size=100_000)
    index = json.loads((path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == len(list(path.glob("*.safetensors"))) > 2
    sharded = zoo_torch.stock(path, torch.float32, "eager")
    assert torch.equal(prefill(sharded), prefill(model_of("qwen3_moe")))


def test_decoding_appends_what_the_whole_text_would_give(model_of: Models) -> None:
    model = model_of("qwen3_moe")
    logits = zoo_torch.logits_of(model, TOKENS, 3)
    assert logits.shape == (len(TOKENS) + 3, zoo_torch.VOCABULARY)
    said = logits[len(TOKENS) - 1 : -1].argmax(-1).tolist()
    whole = zoo_torch.logits_of(model, [*TOKENS, *said], 0)
    assert (whole - logits).abs().max() < CLOSE


def test_tokens_differ_in_their_logits(model_of: Models) -> None:
    for model_type in zoo_torch.TINY:
        rows = prefill(model_of(model_type))
        assert rows.isfinite().all(), model_type
        assert min((b - a).abs().mean() for a, b in pairwise(rows)) > 0.05, model_type


def test_facts_are_of_both_tables() -> None:
    facts = zoo_torch.facts()["gpt_oss"]
    assert facts == Facts(
        "GptOssForCausalLM",
        "GptOssExperts",
        True,
        frozenset(["gate_up", "transposed", "interleaved", "bias", "own gate"]),
        frozenset(
            f"model.layers.*.mlp.experts.{name}"
            for name in ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
        ),
        "router",
        2,
        "eager",
        facts.float32_difference,
        facts.bfloat16_difference,
        True,
        "recorded",
    )
