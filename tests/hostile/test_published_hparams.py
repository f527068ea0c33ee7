"""What converters wrote for models that people run: none of it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from localmoe.weights.hparams import check_hparams
from localmoe.weights.shards import read_shards
from raw_gguf import LAYERS, TOKENS, RawGguf, tiny

Keys = dict[str, Any]


def model(
    architecture: str, width: int, heads: int | list[int], kv_heads: int | list[int], **keys: Any
) -> Keys:
    """Return keys; `__` stands for a dot. Layers are shortened to what `tiny` has."""
    return {
        "architecture": architecture,
        "embedding_length": width,
        "attention__head_count": heads,
        "attention__head_count_kv": kv_heads,
        **keys,
    }


def experts(count: int, used: int, **keys: Any) -> Keys:
    return {"expert_count": count, "expert_used_count": used, **keys}


def head(width: int, rotated: int | None = None) -> Keys:
    keys = {"attention__key_length": width, "attention__value_length": width}
    return keys if rotated is None else {**keys, "rope__dimension_count": rotated}


def latent(nope: int = 128, values: int = 128) -> Keys:
    """Return the keys of latent attention as DeepSeek-V3 and all after it have them."""
    return {
        "attention__q_lora_rank": 1536,
        "attention__kv_lora_rank": 512,
        "attention__key_length": 576,
        "attention__value_length": 512,
        "attention__key_length_mla": nope + 64,
        "attention__value_length_mla": values,
        "rope__dimension_count": 64,
    }


def yarn(factor: float, original: int, **keys: Any) -> Keys:
    return {
        "rope__scaling__type": "yarn",
        "rope__scaling__factor": factor,
        "rope__scaling__original_context_length": original,
        **keys,
    }


def groups(count: int, used: int) -> Keys:
    return {"expert_group_count": count, "expert_group_used_count": used}


def scan(kernel: int, inner: int, state: int, rank: int, group: int = 1) -> Keys:
    return {
        "ssm__conv_kernel": kernel,
        "ssm__inner_size": inner,
        "ssm__state_size": state,
        "ssm__time_step_rank": rank,
        "ssm__group_count": group,
    }


SIGMOID = {"expert_gating_func": 2}
ONE_GROUP = groups(1, 1)
WINDOWS = {"attention__sliding_window_pattern": [True, True, False]}

PUBLISHED: dict[str, Keys] = {
    "Qwen3-30B-A3B": model("qwen3moe", 2048, 32, 4, **head(128), **experts(128, 8)),
    "Qwen3-235B-A22B": model("qwen3moe", 4096, 64, 4, **head(128), **experts(128, 8)),
    "Qwen1.5-MoE": model("qwen2moe", 2048, 16, 16, **experts(60, 4)),
    "Qwen3-Next": model(
        "qwen3next", 2048, 16, 2, **head(256, 64), **experts(512, 10), **scan(4, 4096, 128, 32, 16),
        full_attention_interval=4,
    ),
    "Qwen3.5-35B": model(
        "qwen35moe", 2048, 16, 2, **head(256, 64), **experts(256, 8), **scan(4, 4096, 128, 32, 16),
        rope__dimension_sections=[11, 11, 10, 0], full_attention_interval=4,
    ),
    "Qwen3-VL-30B": model(
        "qwen3vlmoe", 2048, 32, 4, **head(128), **experts(128, 8),
        rope__dimension_sections=[24, 20, 20, 0], n_deepstack_layers=3,
    ),
    "Trinity Mini": model(
        "afmoe", 2048, 32, 4, **head(128), **experts(128, 8), **SIGMOID, **ONE_GROUP,
        attention__sliding_window=2048, leading_dense_block_count=2, expert_weights_scale=2.826,
    ),
    "DeepSeek-R1": model(
        "deepseek2", 7168, 128, 1, **latent(), **experts(256, 8), **SIGMOID, **groups(8, 4),
        **yarn(40.0, 4096, rope__scaling__yarn_log_multiplier=0.1), leading_dense_block_count=3,
    ),
    "DeepSeek-R1 of January 2025": model(
        "deepseek2", 7168, 128, 128, **experts(256, 8), **SIGMOID, **yarn(40.0, 4096),
        attention__q_lora_rank=1536, attention__kv_lora_rank=512, attention__key_length=192,
        attention__value_length=128, rope__dimension_count=64,
    ),
    "DeepSeek-V2-Lite": model(
        "deepseek2", 2048, 16, 16, **experts(64, 6), **yarn(40.0, 4096),
        attention__kv_lora_rank=512, attention__key_length=192, attention__value_length=128,
        rope__dimension_count=64,
    ),
    "Kimi K2": model(
        "deepseek2", 7168, 64, 1, **latent(), **experts(384, 8), **SIGMOID, **ONE_GROUP,
        **yarn(32.0, 4096), rope__freq_base=50000.0,
    ),
    "Mistral Large 3": model(
        "deepseek2", 7168, 128, 1, **latent(), **experts(128, 4, expert_gating_func=1),
        **ONE_GROUP, **yarn(36.0, 8192), attention__temperature_scale=0.1,
        attention__temperature_length=8192,
    ),
    "GLM-4.7-Flash": model(
        "deepseek2", 2048, 20, 1, **latent(192, 256), **experts(64, 4), **SIGMOID, **ONE_GROUP
    ),
    "GLM-5": model(
        "glm-dsa", 6144, 64, 1, **latent(192, 256), **experts(256, 8), **SIGMOID, **ONE_GROUP,
        attention__indexer__head_count=32, attention__indexer__key_length=128,
        attention__indexer__top_k=2048, nextn_predict_layers=1,
    ),
    "GLM-4.5-Air": model(
        "glm4moe", 4096, 96, 8, **head(128, 64), **experts(128, 8), **SIGMOID, **ONE_GROUP,
        nextn_predict_layers=1, leading_dense_block_count=1,
    ),
    "GLM-4.5V": model(
        "glm4moe", 4096, 96, 8, **head(128, 64), **experts(128, 8), **SIGMOID,
        rope__dimension_sections=[8, 12, 12, 0],
    ),
    "gpt-oss-120b": model(
        "gpt-oss", 2880, 64, 8, **head(64), **experts(128, 4), **yarn(32.0, 4096),
        attention__sliding_window=128,
    ),
    "Llama 4 Scout": model(
        "llama4", 5120, 40, 8, **head(128, 128), **experts(16, 1), interleave_moe_layer_step=1,
        context_length=10485760, rope__freq_base=500000.0,
    ),
    "Llama 4 Maverick": model(
        "llama4", 5120, 40, 8, **head(128, 128), **experts(128, 1), interleave_moe_layer_step=2
    ),
    "Mixtral 8x22B": model("llama", 6144, 48, 8, rope__dimension_count=128, **experts(8, 2)),
    "OLMoE": model("olmoe", 2048, 16, 16, **experts(64, 8)),
    "MiniMax-M2": model("minimax-m2", 3072, 48, 8, **head(128, 64), **experts(256, 8), **SIGMOID),
    "Granite 3.0 1B-A400M": model("granitemoe", 1024, 16, 8, **experts(32, 8), logit_scale=6.0),
    "Granite 4.0 H Small": model(
        "granitehybrid", 4096, 32, [0, 0, 8], **experts(72, 10), **scan(4, 8192, 128, 128),
        logit_scale=16.0, rope__dimension_count=128, context_length=1 << 20,
        rope__scaling__finetuned=False,
    ),
    "Jamba 1.5 Mini": model(
        "jamba", 4096, 32, [0, 0, 8], **experts(16, 2), **scan(4, 8192, 16, 256)
    ),
    "Jamba Reasoning 3B": model(
        "jamba", 2560, 20, [0, 0, 1], **experts(1, 1), **scan(4, 5120, 16, 160)
    ),
    "Nemotron 3 Nano": model(
        "nemotron_h_moe", 2688, 32, [0, 2, 0], **head(128, 84), **experts(128, 6),
        **scan(4, 4096, 128, 64, 8), expert_group_count=1, feed_forward_length=[0, 0, 1856],
    ),
    "A Nemotron-H with a rotation that it has no use for": model(
        "nemotron_h", 8192, 32, [0, 8, 0], **head(128, 256), **scan(4, 16384, 128, 128, 8)
    ),
    "LFM2-8B-A1B": model(
        "lfm2moe", 2048, 32, [0, 0, 8], **experts(32, 4), **SIGMOID, shortconv__l_cache=3
    ),
    "ERNIE 4.5 21B": model(
        "ernie4_5-moe", 2560, 20, 4, **head(128), **experts(64, 6), interleave_moe_layer_step=1
    ),
    "Hunyuan-A13B": model(
        "hunyuan-moe", 4096, 32, 8, **head(128), **experts(64, 8), rope__scaling__type="none",
        rope__scaling__factor=1.0, rope__scaling__original_context_length=1 << 18,
        rope__freq_base=11158839.925,
    ),
    "dots.llm1": model(
        "dots1", 4096, 32, 32, **head(128), **experts(128, 6), **SIGMOID, **ONE_GROUP
    ),
    "Ling-mini-2.0": model(
        "bailingmoe2", 2048, 16, 4, **head(128, 64), **experts(256, 8), **SIGMOID, **groups(8, 4)
    ),
    "Kimi-Linear-48B": model(
        "kimi-linear", 2304, 32, [0, 0, 1], **{**latent(), "attention__value_length": 72},
        **experts(256, 8), **SIGMOID, **ONE_GROUP, ssm__conv_kernel=4, kda__head_dim=128,
    ),
    "MiMo-V2-Flash": model(
        "mimo2", 4096, 64, [8, 8, 4], **experts(256, 8), **SIGMOID, **WINDOWS,
        attention__sliding_window=128, attention__key_length=192, attention__value_length=128,
        rope__dimension_count=64,
    ),
    "Gemma 4 26B": model(
        "gemma4", 2816, 16, [8, 8, 2], **head(512, 512), **experts(128, 8), **WINDOWS,
        attention__key_length_swa=256, attention__value_length_swa=256,
        rope__dimension_count_swa=256, attention__sliding_window=1024,
    ),
    "Phi-3.5-MoE": model(
        "phimoe", 4096, 32, 8, **experts(16, 2), rope__dimension_count=128,
        rope__scaling__type="longrope", rope__scaling__attn_factor=1.19,
    ),
    "Arctic": model("arctic", 7168, 56, 8, **experts(128, 2), rope__dimension_count=128),
    "DBRX": model("dbrx", 6144, 48, 8, **experts(16, 4), attention__clamp_kqv=8.0),
    "Llama 3.2 1B": model("llama", 2048, 32, 8, **head(64, 64), rope__freq_base=500000.0),
    "DeepSeek-R1-Distill-Qwen-7B": model("qwen2", 3584, 28, 4),
    "Qwen2.5-0.5B": model("qwen2", 896, 14, 2),
    "Qwen2.5-VL": model("qwen2vl", 2048, 16, 2, rope__dimension_sections=[16, 24, 24, 0]),
    "Qwen3-0.6B": model("qwen3", 1024, 16, 8, **head(128)),
    "Gemma 2 9B": model("gemma2", 3584, 16, 8, **head(256), attention__sliding_window=4096),
    "Gemma 3 1B": model("gemma3", 1152, 4, 1, **head(256), attention__sliding_window=512),
    "Gemma 3 4B": model(
        "gemma3", 2560, 8, 4, **head(256), attention__sliding_window=1024,
        rope__scaling__type="linear", rope__scaling__factor=8.0,
    ),
    "Phi-3 mini 4k": model(
        "phi3", 3072, 32, 32, rope__dimension_count=96, attention__sliding_window=2047
    ),
    "Phi-4": model("phi3", 5120, 40, 10, rope__dimension_count=128, attention__sliding_window=0),
    "Phi-4-mini": model(
        "phi3", 3072, 24, 8, rope__dimension_count=96, attention__sliding_window=262144,
        rope__scaling__type="longrope", rope__scaling__original_context_length=4096,
    ),
    "Mistral Nemo": model("llama", 5120, 32, 8, **head(128, 128), context_length=1024000),
    "Ministral 3 8B": model(
        "mistral3", 4096, 32, 8, **head(128, 128), **yarn(16.0, 16384),
        attention__temperature_scale=0.1,
    ),
    "SmolLM2-135M": model("llama", 576, 9, 3, rope__dimension_count=64),
    "Minitron-8B": model("nemotron", 4096, 48, 8, **head(128, 42)),
    "Nemotron-Super-49B": model(
        "deci", 8192, [64, 0, 64], [8, 0, 8], rope__dimension_count=128,
        feed_forward_length=[28672, 0, 14336],
    ),
    "OLMo 3": model(
        "olmo2", 4096, 32, 32, **WINDOWS, **yarn(8.0, 8192), attention__sliding_window=4096
    ),
    "EXAONE 4.0 32B": model(
        "exaone4", 5120, 40, 8, **head(128), **WINDOWS, attention__sliding_window=4096
    ),
    "MiniCPM3-4B": model(
        "minicpm3", 2560, 40, 40, attention__key_length=96, rope__dimension_count=32,
        attention__q_lora_rank=768, attention__kv_lora_rank=256,
    ),
    "StableLM 3B": model("stablelm", 2560, 32, 32, rope__dimension_count=20),
    "OpenELM-1.1B": model(
        "openelm", 2048, [16, 16, 20], [4, 4, 5], **head(64, 64), feed_forward_length=[1024] * 3
    ),
    "Falcon-H1-0.5B": model("falcon-h1", 1024, 8, 2, **head(64), **scan(4, 1536, 128, 24)),
    "PLaMo 2 8B": model(
        "plamo2", 4096, [0, 32, 0], [0, 4, 0], **head(128), **scan(4, 8192, 64, 64, 0)
    ),
    "Falcon Mamba": model("mamba", 4096, 0, 0, **scan(4, 8192, 16, 256), context_length=1 << 20),
    "RWKV-7": model("rwkv7", 2048, 0, 0, wkv__head_size=64, context_length=1 << 20),
    "QRWKV6-32B": model("rwkv6qwen2", 5120, 0, 8, wkv__head_size=128, token_shift_count=1),
}  # fmt: skip


def kind_of(value: Any) -> str:
    """Return the kind that converters store such a value as."""
    if isinstance(value, list):
        return {bool: "[bool]", int: "[i32]"}[type(value[0])]
    return {bool: "bool", int: "u32", float: "f32", str: "str"}[type(value)]


def published(keys: Keys) -> RawGguf:
    """Return a file with these keys, three layers and an embedding of the right width."""
    keys = dict(keys)
    architecture, width = keys.pop("architecture"), keys["embedding_length"]
    raw = tiny(architecture)
    for name, value in keys.items():
        raw = raw.with_key(f"{architecture}.{name.replace('__', '.')}", kind_of(value), value)
    if "expert_count" not in keys:
        for name in ("expert_count", "expert_used_count"):
            raw = raw.without_key(f"{architecture}.{name}")
    size = 4 * width * TOKENS
    return raw.with_tensor("token_embd.weight", dims=(width, TOKENS), nbytes=size)


@pytest.mark.parametrize("name", PUBLISHED)
def test_nothing_that_was_published_is_refused(name: str, tmp_path: Path) -> None:
    keys = PUBLISHED[name]
    assert all(len(value) in (LAYERS, 4) for value in keys.values() if isinstance(value, list))
    check_hparams(read_shards(published(keys).write(tmp_path / "model.gguf")))
