"""Every architecture of llama.cpp that can have experts is in the zoo, or a reason says why not."""

from __future__ import annotations

from pathlib import Path

import pytest

import localmoe
import zoo
from zoo.draft import Draft
from zoo.unsupported import UNSUPPORTED

_NAMES = """
afmoe arctic bailingmoe bailingmoe2 bailingmoe3 cohere2moe dbrx deepseek deepseek2
deepseek2-ocr deepseek32 deepseek4 dflash dots1 dots3note ernie4_5-moe exaone-moe gemma4
glm-dsa glm4moe glm5-next gpt-oss granite granite_swa granitehybrid granitemoe grok grovemoe
hunyuan-moe hy_v3 hy_v4 jamba kimi-k3 kimi-linear laguna lfm2moe llada-moe llama llama-embed
llama4 maple mellum mimo2 minicpm minimax-01 minimax-m2 minimax-m3 mistral3 mistral4
nemotron_h nemotron_h_moe nomic-bert-moe olmoe phimoe qwen2moe qwen35moe qwen3moe qwen3next
qwen3vlmoe qwen4exp refact rnd1 smallthinker step35
"""
MOE_ARCHITECTURES = frozenset(_NAMES.split())
"""All of the llama.cpp in llama-cpp-python 0.3.36 whose loader creates tensors of routed experts.

Some are better known as dense models: their loaders take experts where the metadata count some.
"""


def test_every_architecture_with_experts_has_a_model_or_a_reason() -> None:
    modelled = {model.architecture for model in zoo.ARCHITECTURES.values()}
    assert sorted(MOE_ARCHITECTURES - modelled - UNSUPPORTED.keys()) == []
    assert sorted((modelled | UNSUPPORTED.keys()) - MOE_ARCHITECTURES) == [], "not of llama.cpp"
    assert sorted(modelled & UNSUPPORTED.keys()) == [], "both supported and not"


def test_reasons_are_sentences() -> None:
    for architecture, reason in UNSUPPORTED.items():
        assert len(reason.split()) > 4, architecture
        assert reason.endswith("."), architecture


@pytest.mark.parametrize("architecture", sorted(UNSUPPORTED))
def test_what_is_not_supported_is_refused(tmp_path: Path, architecture: str) -> None:
    model = zoo.MODELS["qwen3moe"]
    draft = Draft(architecture, model.shape)
    model.build(draft)
    path = draft.write(tmp_path, architecture)
    with pytest.raises(localmoe.ModelError, match=architecture):
        localmoe.load(path)
