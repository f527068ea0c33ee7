"""Published models' shapes: their sizes, names, types and random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from localmoe.backends.llama.load import load
from localmoe.errors import SettingsError
from localmoe.settings import Settings
from localmoe.synthetic.blocks import random_blocks
from localmoe.synthetic.config import Config, DeltaNet, Latent
from localmoe.synthetic.models import config_named, known_name, near_names
from localmoe.synthetic.published import CONFIGS
from localmoe.synthetic.quantization import QUANTIZATIONS, quantization_named
from localmoe.synthetic.writer import model_nbytes, write_checkpoint, write_stand_in
from localmoe.weights.gguf import read_catalog

# GB as published: what stays resident, and whole files, at Q4_K_M, Q8_0 and IQ2_XXS (0: not known).
PUBLISHED = {
    "trinity-nano": ((0.47, 0.75, 0.31), (3.75, 6.52, 0)),
    "trinity-mini": ((1.26, 2.11, 0.75), (15.8, 27.8, 0)),
    "trinity-large": ((4.53, 7.84, 2.41), (239.6, 423.7, 103.5)),
    "deepseek-r1": ((10.5, 18.5, 5.46), (404.5, 713.3, 174.6)),
    "kimi-k2": ((7.64, 12.9, 4.32), (620.6, 1091.0, 267.1)),
    "qwen3-30b-a3b": ((1.00, 1.67, 0.62), (18.6, 32.5, 8.18)),
    "qwen3-235b-a22b": ((4.86, 8.64, 2.62), (142.1, 249.9, 61.8)),
    "qwen3-coder-480b": ((7.29, 13.0, 3.93), (290.1, 510.3, 125.8)),
    "qwen3-next-80b": ((1.67, 2.66, 1.15), (48.5, 84.8, 21.2)),
    "qwen3.5-35b-a3b": ((1.65, 2.67, 1.12), (21.2, 36.9, 9.48)),
    "qwen3.5-122b-a10b": ((3.99, 6.65, 2.54), (74.2, 129.9, 32.6)),
    "qwen3.5-397b-a17b": ((6.55, 10.8, 4.22), (240.6, 421.5, 104.5)),
    "llama4-scout": ((6.84, 11.8, 3.49), (65.3, 114.5, 28.6)),
    "llama4-maverick": ((8.71, 15.1, 4.32), (242.8, 425.8, 104.7)),
    "glm-4.5-air": ((4.42, 7.72, 2.41), (70.4, 113.6, 38.2)),
    "glm-4.7": ((10.1, 18.1, 5.17), (213.1, 375.1, 92.2)),
    "glm-4.7-flash": ((1.35, 2.31, 0.77), (18.1, 31.8, 7.96)),
    "glm-5": ((11.7, 20.7, 6.02), (448.4, 790.8, 193.5)),
    "gpt-oss-20b": ((0, 0, 0), (15.8, 22.2, 0)),
    "gpt-oss-120b": ((0, 0, 0), (87.8, 124.3, 0)),
    "mistral-large-3": ((11.8, 20.9, 5.89), (405.7, 715.7, 175.0)),
    "olmoe": ((0.31, 0.51, 0.20), (4.21, 7.36, 1.88)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_are_those_that_were_published(name: str) -> None:
    resident, files = PUBLISHED[name]
    for quantization, kept, whole in zip(
        ("Q4_K_M", "Q8_0", "IQ2_XXS"), resident, files, strict=True
    ):
        found_resident, found_routed = model_nbytes(CONFIGS[name], quantization)
        if kept:
            assert found_resident / 1e9 == pytest.approx(kept, rel=0.02, abs=0.006)
        if whole:
            assert (found_resident + found_routed) / 1e9 == pytest.approx(whole, rel=0.02)


def test_published_mxfp4_files_of_gpt_oss() -> None:
    for name, whole in (("gpt-oss-20b", 12.1), ("gpt-oss-120b", 63.4)):
        assert sum(model_nbytes(CONFIGS[name], "MXFP4")) / 1e9 == pytest.approx(whole, rel=0.02)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("trinity-large", "trinity-large"),
        ("Trinity_Large-Thinking", "trinity-large"),
        ("DeepSeek-V3.1", "deepseek-r1"),
        ("glm-4.6", "glm-4.7"),
        ("OLMoE", "olmoe"),
        ("gpt-4", None),
        ("", None),
    ],
)
def test_a_model_is_known_by_its_names(text: str, name: str | None) -> None:
    assert known_name(text) == name


def test_a_wrong_name_or_quantization_suggests_near_ones() -> None:
    assert near_names("trinity-larg")[0] == "trinity-large"
    with pytest.raises(SettingsError, match="Did you mean kimi-k2"):
        config_named("kimi-2")
    with pytest.raises(SettingsError, match="Did you mean Q4_K_"):
        quantization_named("q4_k_x")
    with pytest.raises(SettingsError, match="Known: BF16"):
        quantization_named("zzz")
    assert quantization_named("mxfp4_moe") == "MXFP4"


def test_a_stand_in_has_the_true_length_and_takes_no_room(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_stand_in(path, CONFIGS["trinity-large"], "q4_k_m")
    catalog = read_catalog(path)
    resident, routed = model_nbytes(CONFIGS["trinity-large"], "Q4_K_M")
    assert (catalog.resident_nbytes, catalog.expert_nbytes) == (resident, routed)
    assert path.stat().st_size > resident + routed
    assert path.stat().st_blocks * 512 < 64 << 20


MADE_UP_TYPES = sorted(
    {
        *("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_0", "Q5_1", "Q4_K", "Q4_0", "Q3_K"),
        *("Q2_K", "IQ4_XS", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ2_XXS", "MXFP4"),
    }
)


@pytest.mark.parametrize("type_name", MADE_UP_TYPES)
def test_random_weights_have_the_deviation_that_was_asked_for(type_name: str) -> None:
    rng = np.random.Generator(np.random.SFC64(1))
    packed = random_blocks(type_name, 256 * 512, 0.02, rng)
    if type_name in ("F32", "F16", "BF16"):
        kind = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[type_name]
        numbers = packed.view(kind)
        if type_name == "BF16":
            numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
    else:
        numbers = dequantize(packed, GGMLQuantizationType[type_name])
    # MXFP4 knows powers of two alone.
    tolerance = 0.5 if type_name == "MXFP4" else 0.1
    assert numbers.size == 256 * 512
    assert float(numbers.astype(np.float64).std()) == pytest.approx(0.02, rel=tolerance)
    assert abs(float(numbers.astype(np.float64).mean())) < 0.004


def test_a_type_that_cannot_be_made_up_is_refused() -> None:
    with pytest.raises(SettingsError, match="no random weights of type TQ1_0"):
        random_blocks("TQ1_0", 256, 1.0, np.random.default_rng(0))


def tiny(config: Config) -> Config:
    """Return a model of the same form that is written and computed in milliseconds."""
    latent = config.latent and Latent(256, 64, 64, 32, 64, config.latent.indexer and (4, 64, 16))
    delta = config.delta and DeltaNet(2, 4, 64, config.delta.joined_gates)
    return replace(
        config,
        layers=max(5, config.dense_layers + 2),
        embedding=256,
        heads=4,
        kv_heads=1 if latent else 2 if config.qk_norm != "all" else 4,
        head_size=64,
        feed_forward=256,
        expert_feed_forward=256,
        shared_feed_forward=256 if config.shared_feed_forward else 0,
        vocabulary=300,
        context_tokens=256,
        # llama.cpp tells Maverick from Scout by its 128 experts.
        experts=128 if config.architecture == "llama4" and config.moe_step == 2 else 16,
        experts_used=min(2, config.experts_used),
        groups=(4, 2) if config.groups[0] > 1 else (1, 1),
        window=min(config.window, 16),
        rope_dimensions=32 if config.rope_dimensions else 0,
        latent=latent or None,
        delta=delta or None,
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_every_known_model_is_written_runs_and_streams_to_the_same_bits(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / f"{name}.gguf"
    steps: list[int] = []
    quantization = "MXFP4" if "gpt-oss" in name else "Q4_K_M"
    write_checkpoint(
        path, tiny(CONFIGS[name]), quantization, lambda _, done, __: steps.append(done)
    )
    assert steps == sorted(steps)
    tokens = [5, 9, 200, 17, 44, 3]
    logits = []
    for slots in (None, 24):
        with load(path, Settings(slots=slots, threads=1, context_tokens=64)) as engine:
            assert engine.plan.streams == (slots is not None)
            logits.append(engine.decode(tokens, "all"))
            logits.append(engine.decode([7]))
    assert np.isfinite(logits[0]).all()
    assert np.ptp(logits[0]) > 0.1
    assert np.array_equal(logits[0], logits[2])
    assert np.array_equal(logits[1], logits[3])


def test_all_quantizations_are_known_by_every_model() -> None:
    for name in ("gpt-oss-20b", "glm-4.5-air", "qwen3-next-80b", "glm-5"):
        sizes = {q: sum(model_nbytes(CONFIGS[name], q)) for q in QUANTIZATIONS}
        assert sizes["BF16"] > sizes["Q8_0"] > sizes["Q4_K_M"] >= sizes["IQ2_XXS"]
