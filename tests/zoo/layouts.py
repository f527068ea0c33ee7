"""The types, sizes and files that checkpoints come in; most on one architecture.

Named after what llama.cpp's quantiser calls them. As there, one file has several types: `down` is
larger in some layers, and columns that are no multiple of 256 take a type of smaller blocks. So
that three layers show it, they do not always lie where the quantiser has them. Few experts: a
prefill chunk of 32 tokens has more than 8 rows for most of them and one of 7 fewer, and llama.cpp
computes K and IQ types differently from 8 on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zoo.draft import Draft
from zoo.families.deepseek import deepseek2
from zoo.families.openai import gpt_oss
from zoo.families.qwen import qwen3moe
from zoo.model import ZooModel
from zoo.shape import ExpertTypes, Shape


def _nvfp4(model: Draft) -> None:
    """Experts and attention in NVFP4; beside each matrix, and for each expert, two scales."""
    qwen3moe(model)
    shape = model.shape
    query, key = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    for i in range(shape.layers):
        for name in ("gate", "up", "down"):
            scale = f"blk.{i}.ffn_{name}_exps.input_scale"
            model.noise(scale, shape.experts, std=0.2, mean=1.0)
        for name, rows, columns in (
            ("q", query, shape.embedding),
            ("k", key, shape.embedding),
            ("v", key, shape.embedding),
            ("output", shape.embedding, query),
        ):
            matrix = f"blk.{i}.attn_{name}"
            model.matrix(matrix, rows, columns, type_name="NVFP4")
            model.noise(f"{matrix}.scale", 1, std=0.2, mean=1.0)
            model.noise(f"{matrix}.input_scale", 1, std=0.2, mean=1.0)


def _blocks_of_256(*types: ExpertTypes, **changes: Any) -> Shape:
    """Return a shape for types whose blocks hold 256 weights."""
    fields = dict(
        embedding=256,
        expert_feed_forward=256,
        experts=6,
        expert_types=types,
        resident_type="Q8_0",
    )
    return Shape(**{**fields, **changes})


def _each(name: str) -> ExpertTypes:
    return (name, name, name)


def _two(gate_and_up: str, down: str) -> ExpertTypes:
    return (gate_and_up, gate_and_up, down)


def _model(
    shape: Shape, stands_for: str, covers: str, build: Callable[[Draft], None] = qwen3moe
) -> ZooModel:
    return ZooModel("qwen3moe", build, shape, stands_for, covers)


_SMALL_BLOCKS = {
    "qwen3moe-f16": _model(
        Shape(
            expert_feed_forward=40,
            experts=6,
            expert_types=(_each("F16"), _each("BF16"), _each("F32")),
            resident_type="BF16",
        ),
        "F16, BF16, F32",
        "types without blocks; parts of 5120 and 10240 bytes",
    ),
    "qwen3moe-q8": _model(
        Shape(embedding=128, expert_feed_forward=64, expert_types=(_each("Q8_0"),)),
        "Q8_0",
        "parts of 8704 bytes: a multiple of 512 only",
    ),
    "qwen3moe-q4_0": _model(
        Shape(experts=6, expert_types=(_two("Q4_0", "Q4_1"), _each("Q4_0"), _two("Q4_1", "Q4_0"))),
        "Q4_0, Q4_1",
        "parts of 1152 and 1280 bytes",
    ),
    "qwen3moe-q5_0": _model(
        Shape(experts=6, expert_types=(_two("Q5_0", "Q5_1"), _each("Q5_0"), _two("Q5_1", "Q5_0"))),
        "Q5_0, Q5_1",
        "parts of 1408 and 1536 bytes",
    ),
    "qwen3moe-mxfp4": _model(
        Shape(experts=6, expert_types=(_each("MXFP4"),), resident_type="Q8_0"),
        "MXFP4_MOE",
        "MXFP4 experts, everything else Q8_0; parts of 1088 bytes",
    ),
    "qwen3moe-nvfp4": _model(
        Shape(
            expert_feed_forward=64,
            experts=6,
            expert_types=(_each("NVFP4"),),
            resident_type="BF16",
            expert_scales=True,
        ),
        "NVFP4, as NVIDIA publishes it",
        "two scales beside each matrix, for each expert its own",
        _nvfp4,
    ),
    "qwen3moe-scaled": _model(
        Shape(expert_types=(("Q8_0", "Q4_0", "Q8_0"),), expert_scales=True, shards=3),
        "scales per expert in a split file",
        "parts of 2176 and 1152 bytes: no multiple of 512; types that differ between gate and up",
    ),
}

_BLOCKS_OF_256 = {
    "qwen3moe-q2_k": _model(
        _blocks_of_256(_two("Q2_K", "Q3_K"), _each("Q2_K"), _two("Q2_K", "Q4_K")),
        "Q2_K, Q2_K_S",
        "three size classes that differ in down alone",
    ),
    "qwen3moe-q3_k": _model(
        _blocks_of_256(_two("Q3_K", "Q5_K"), _two("Q3_K", "Q4_K"), _each("Q3_K")),
        "Q3_K_M, Q3_K_S",
        "parts of 28160 bytes, each layer with its own type of down",
    ),
    "qwen3moe-q4_k_m": _model(
        _blocks_of_256(
            _each("Q4_K"), _each("Q4_K"), _two("Q4_K", "Q6_K"), layers=6, experts=4, shards=3
        ),
        "Q4_K_M, three shards",
        "down is larger in layers 2 and 5; shards begin and end with experts, and cut two layers",
    ),
    "qwen3moe-q5_k_m": _model(
        _blocks_of_256(_each("Q5_K"), _each("Q5_K"), _two("Q5_K", "Q6_K"), shards=7),
        "Q5_K_M, seven shards",
        "shards of six tensors, three of which begin with experts",
    ),
    "qwen3moe-q6_k": _model(
        _blocks_of_256(_each("Q6_K")),
        "Q6_K",
        "one size class; parts of 53760 bytes: a multiple of 512 only",
    ),
    "qwen3moe-iq1": _model(
        _blocks_of_256(_two("IQ1_S", "Q2_K"), _each("IQ1_S"), _each("IQ1_M")),
        "IQ1_S, IQ1_M",
        "parts of 12800 and 14336 bytes",
    ),
    "qwen3moe-iq2_xs": _model(
        _blocks_of_256(_two("IQ2_XXS", "Q2_K"), _each("IQ2_XXS"), _each("IQ2_XS")),
        "IQ2_XXS, IQ2_XS",
        "parts of 16896 and 18944 bytes",
    ),
    "qwen3moe-iq2_s": _model(
        _blocks_of_256(_two("IQ2_S", "IQ3_S"), _each("IQ2_S"), _each("IQ2_S")),
        "IQ2_S, IQ2_M",
        "parts of 20992 bytes",
    ),
    "qwen3moe-iq3": _model(
        _blocks_of_256(_two("IQ3_XXS", "Q4_K"), _each("IQ3_XXS"), _each("IQ3_S")),
        "IQ3_XXS, IQ3_XS, IQ3_S",
        "parts of 25088 bytes",
    ),
    "qwen3moe-iq4": _model(
        _blocks_of_256(_two("IQ4_XS", "Q5_K"), _each("IQ4_XS"), _each("IQ4_NL"), alignment=4096),
        "IQ4_XS, IQ4_NL",
        "tensors aligned to 4096 bytes; parts of 34816 bytes are not",
    ),
    "qwen3moe-ternary": _model(
        _blocks_of_256(_each("TQ1_0"), _each("TQ2_0"), _each("Q1_0")),
        "TQ1_0, TQ2_0, Q1_0",
        "the smallest parts for their weights: 9216 bytes",
    ),
}

_MIXTURES = {
    "qwen3moe-mixed": _model(
        _blocks_of_256(
            ("Q4_K", "Q4_K", "Q6_K"), ("Q4_K", "Q5_K", "Q4_K"), ("Q6_K", "Q4_K", "Q8_0")
        ),
        "mixtures made by hand",
        "types that differ per layer and per projection: three size classes",
    ),
    "qwen3moe-dynamic": _model(
        _blocks_of_256(
            _two("IQ2_XXS", "IQ3_XXS"),
            _two("IQ3_XXS", "IQ4_XS"),
            _two("IQ4_XS", "Q5_K"),
            _two("Q4_K", "Q6_K"),
            _two("Q6_K", "Q8_0"),
            layers=5,
            experts=5,
        ),
        "dynamic quantisations",
        "five layers, five size classes",
    ),
    "qwen3moe-1408": _model(
        _blocks_of_256(
            _two("Q4_K", "Q5_0"),
            _two("IQ2_XXS", "IQ4_NL"),
            layers=2,
            expert_feed_forward=1408,
            experts=3,
        ),
        "GLM-4.5-Air, Moonlight: down has 1408 columns",
        "types of small blocks where 256 do not fit; parts of 92928 bytes: no multiple of 512",
    ),
    "gpt-oss-2880": ZooModel(
        "gpt-oss",
        gpt_oss,
        Shape(
            layers=2,
            embedding=32,
            expert_feed_forward=2880,
            experts=6,
            expert_types=(_each("MXFP4"),),
            resident_type="Q8_0",
        ),
        "gpt-oss as published: 2880 columns",
        "parts of 48960 bytes and biases of 11520: no multiple of 512",
    ),
    "gpt-oss-q4_k_m": ZooModel(
        "gpt-oss",
        gpt_oss,
        Shape(
            layers=2,
            embedding=32,
            expert_feed_forward=2880,
            experts=6,
            expert_types=(_each("Q5_0"), _two("Q5_0", "Q8_0")),
            resident_type="Q8_0",
        ),
        "gpt-oss in Q4_K_M: no type of its name fits 2880 columns",
        "parts of 63360 and 97920 bytes beside biases",
    ),
    "deepseek2-q4_k_m": ZooModel(
        "deepseek2",
        deepseek2,
        _blocks_of_256(
            _each("Q4_K"),
            _two("Q4_K", "Q6_K"),
            dense_layers=1,
            shared_experts=1,
            experts=8,
            fused_gate_up=True,
            resident_type="BF16",
        ),
        "DeepSeek-V3 in Q4_K_M with fused gate and up",
        "gate and up in one part of 73728 bytes",
    ),
}

MODELS = {**_SMALL_BLOCKS, **_BLOCKS_OF_256, **_MIXTURES}
