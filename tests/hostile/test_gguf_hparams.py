"""What llama.cpp would abort on, divide by or overrun is refused before it sees the file."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from localmoe.errors import ModelError, ModelFormatError, UnsupportedModelError
from localmoe.weights.gguf import build_catalog
from localmoe.weights.hparams import check_hparams
from localmoe.weights.shards import read_shards
from raw_gguf import EXPERTS, F16, F32, TOKENS, WIDTH, RawGguf, Tensor, tiny

A = "qwen3moe"
I32 = 26


def check(raw: RawGguf, folder: Path) -> None:
    headers = read_shards(raw.write(folder / "model.gguf"))
    build_catalog(headers)
    check_hparams(headers)


def refuse(
    raw: RawGguf, folder: Path, message: str, kind: type[ModelError] = ModelFormatError
) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        check(raw, folder)


def vocabulary(model: str, tokens: list[str]) -> RawGguf:
    """Return the tiny model with another tokenizer."""
    raw = tiny().with_key("tokenizer.ggml.model", "str", model)
    raw = raw.with_key("tokenizer.ggml.tokens", "[str]", tokens)
    raw = raw.with_key("tokenizer.ggml.token_type", "[i32]", [1] * len(tokens))
    return raw.with_tensor(
        "token_embd.weight", dims=(WIDTH, len(tokens)), nbytes=4 * WIDTH * len(tokens)
    )


def spm_tokens() -> list[str]:
    return ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]


def spm() -> RawGguf:
    """Return the tiny model with a SentencePiece vocabulary that covers all bytes."""
    return vocabulary("llama", spm_tokens())


def test_sound_models_pass(tmp_path: Path) -> None:
    check(tiny(), tmp_path)
    check(spm(), tmp_path)
    check(tiny("deepseek"), tmp_path)


def test_the_generated_models_pass(zoo_model: Callable[[str], Path], zoo_names: list[str]) -> None:
    for name in zoo_names:
        headers = read_shards(zoo_model(name))
        build_catalog(headers)
        check_hparams(headers)


@pytest.fixture
def zoo_names() -> list[str]:
    import zoo

    assert zoo.MODELS
    assert zoo.DENSE
    return [*zoo.MODELS, *zoo.DENSE]


@pytest.mark.parametrize(
    ("key", "kind", "value"),
    [
        ("context_length", "u32", 0),
        ("context_length", "u32", 0xFFFFFFFF),
        ("embedding_length", "u32", 0),
        ("embedding_length", "u32", 1 << 31),
        ("embedding_length", "str", "32"),
        ("attention.head_count", "u32", 0),
        ("attention.head_count", "[u32]", [0, 0, 0]),
        ("attention.head_count", "[u32]", [4, 4]),
        ("attention.head_count", "u32", 1 << 20),
        ("attention.head_count_kv", "u32", 3),
        ("attention.head_count_kv", "[u32]", [2, 2]),
        ("attention.head_count_kv", "[u32]", [2, 3, 2]),
        ("attention.head_count_kv", "i32", -1),
        ("attention.key_length", "u32", 0),
        ("attention.key_length", "u32", 1 << 30),
        ("attention.value_length", "u32", 16),
        ("rope.dimension_count", "u32", 6),
        ("rope.dimension_count", "u32", 7),
        ("rope.dimension_count", "u32", 10),
        ("attention.compress_rope_freq_base", "f32", 0.0),
        ("attention.indexer.block_size", "u32", 0),
        ("attention.indexer.top_k", "u32", 0),
        ("hyper_connection.sinkhorn_iterations", "u32", (1 << 31) - 1),
        ("rope.dimension_sections", "[i32]", [4, 4, 4, 4]),
        ("rope.dimension_sections", "[i32]", [-1, 1, 1, 1]),
        ("rope.dimension_sections", "[i32]", [1, 1, 1]),
        ("attention.rope_pattern", "[bool]", [False, False, False]),
        ("rope.scaling.attn_factor", "f32", 1e30),
        ("rope.freq_base", "f32", -1.0),
        ("rope.freq_base", "f32", math.inf),
        ("rope.freq_base", "f32", 0.0),
        ("rope.scaling.yarn_log_multiplier", "f32", 1e6),
        ("rope.scaling.factor", "f32", math.nan),
        ("rope.scaling.type", "str", "yarm"),
        ("rope.scaling.original_context_length", "u32", 0),
        ("attention.layer_norm_rms_epsilon", "f32", math.nan),
        ("attention.layer_norm_rms_epsilon", "f32", -1e-6),
        ("attention.layer_norm_rms_epsilon", "f32", 1e9),
        ("expert_gating_func", "u32", 5),
        ("expert_weights_scale", "f32", math.inf),
        ("logit_scale", "f32", math.nan),
        ("leading_dense_block_count", "u32", 1 << 31),
        ("interleave_moe_layer_step", "u32", 0),
        ("full_attention_interval", "u32", 0),
        ("experts_per_group", "u32", 0),
        ("expert_group_count", "u32", 3),
        ("expert_group_count", "u32", EXPERTS),
        ("ssm.time_step_rank", "u32", 0),
        ("kda.gate_lower_bound", "f32", -1e30),
        ("feed_forward_length", "[u32]", [1, 2, 1 << 30]),
    ],
)
def test_impossible_values(tmp_path: Path, key: str, kind: str, value: object) -> None:
    refuse(tiny().with_key(f"{A}.{key}", kind, value), tmp_path, f"{A}.{key}")


@pytest.mark.parametrize("key", ["context_length", "embedding_length", "attention.head_count"])
def test_missing_keys(tmp_path: Path, key: str) -> None:
    refuse(tiny().without_key(f"{A}.{key}"), tmp_path, f"{A}.{key} is needed, but is missing")


def test_no_architecture(tmp_path: Path) -> None:
    raw = tiny().without_key("general.architecture").write(tmp_path / "f.gguf")
    with pytest.raises(ModelFormatError, match="should name the model's architecture"):
        check_hparams(read_shards(raw))


def test_an_architecture_that_cannot_do_without_its_gating(tmp_path: Path) -> None:
    refuse(tiny("dots1"), tmp_path, "dots1.expert_gating_func is needed")
    check(tiny("dots1").with_key("dots1.expert_gating_func", "u32", 2), tmp_path)


@pytest.mark.parametrize(
    ("architecture", "key", "kind", "value"),
    [
        ("ernie4_5-moe", "interleave_moe_layer_step", "u32", 2),
        ("granitemoe", "logit_scale", "f32", 0.0),
        ("grok", "attn_logit_softcapping", "f32", 0.0),
        ("llama4", "attention.sliding_window", "u32", 0),
        ("qwen3vlmoe", "rope.dimension_sections", "[i32]", [0, 0, 0, 4]),
        ("refact", "expert_count", "u32", EXPERTS),
    ],
)
def test_values_that_one_architecture_cannot_have(
    tmp_path: Path, architecture: str, key: str, kind: str, value: object
) -> None:
    refuse(
        tiny(architecture).with_key(f"{architecture}.{key}", kind, value),
        tmp_path,
        f"{architecture}.{key}",
    )
    check(tiny().with_key(f"{A}.{key}", kind, value), tmp_path)


def test_rotation_without_sections(tmp_path: Path) -> None:
    key = "qwen3vlmoe.rope.dimension_sections"
    check(tiny("qwen3vlmoe").with_key(key, "[i32]", [2, 1, 1, 0]), tmp_path)
    check(tiny("qwen3vlmoe").with_key(key, "i32", 1), tmp_path)
    refuse(tiny("qwen3vlmoe"), tmp_path, key)


@pytest.mark.parametrize(
    ("key", "kind", "value"),
    [
        ("attention.head_count_kv", "[u32]", [0, 2, 4]),
        ("attention.key_length", "u32", 64),
        ("rope.dimension_count", "u32", 4),
        ("rope.scaling.factor", "f32", 40.0),
        ("rope.scaling.type", "str", "yarn"),
        ("expert_group_count", "u32", 1),
        ("attention.sliding_window", "u32", 4096),
        ("a_key_of_tomorrow", "u32", 0),
    ],
)
def test_what_other_architectures_may_say(
    tmp_path: Path, key: str, kind: str, value: object
) -> None:
    """`kimi-linear` stands for one of which nothing special is known."""
    check(tiny("kimi-linear").with_key(f"kimi-linear.{key}", kind, value), tmp_path)


@pytest.mark.parametrize("rotated", [0, 3, 10])
def test_the_rotation_in_windows(tmp_path: Path, rotated: int) -> None:
    raw = tiny("gemma4").with_key("gemma4.rope.dimension_count_swa", "u32", rotated)
    refuse(raw, tmp_path, "rope.dimension_count_swa should be even and 2 to 8")
    raw = tiny("gemma4").with_key("gemma4.attention.key_length_swa", "u32", 4)
    refuse(raw, tmp_path, "rope.dimension_count_swa should be even and 2 to 4")
    check(raw.with_key("gemma4.rope.dimension_count_swa", "u32", 4), tmp_path)


def test_half_of_a_rotation(tmp_path: Path) -> None:
    check(tiny("step35"), tmp_path)
    raw = tiny("step35").with_key("step35.rope.dimension_count", "u32", 6)
    refuse(raw, tmp_path, "should be a multiple of 4")


def latent(**changes: int) -> RawGguf:
    """Return the tiny model with latent attention as deepseek2 has it."""
    keys = {
        "attention.kv_lora_rank": 16,
        "attention.key_length": 24,
        "attention.value_length": 16,
        "attention.key_length_mla": 20,
        "attention.head_count_kv": 1,
        "rope.dimension_count": 8,
    }
    raw = tiny("deepseek2")
    for key, value in (keys | {name.replace("__", "."): n for name, n in changes.items()}).items():
        raw = raw.with_key(f"deepseek2.{key}", "u32", value)
    return raw


def test_latent_attention(tmp_path: Path) -> None:
    check(latent(), tmp_path)
    check(latent(attention__key_length_mla=0, attention__head_count_kv=4), tmp_path)
    refuse(latent(attention__key_length=26), tmp_path, "key_length should be 24")
    refuse(latent(attention__head_count_kv=2), tmp_path, "head_count_kv should be 1")
    refuse(latent(attention__key_length_mla=8), tmp_path, "dimension_count should be 1 to 8")
    refuse(latent(rope__dimension_count=0), tmp_path, "dimension_count should be 1 to 20")


def test_an_architecture_that_crashes_without_a_window(tmp_path: Path) -> None:
    refuse(tiny("afmoe"), tmp_path, "afmoe.attention.sliding_window should be above zero")
    check(tiny("afmoe").with_key("afmoe.attention.sliding_window", "u32", 64), tmp_path)


def test_queries_that_grow_with_their_position_need_a_step(tmp_path: Path) -> None:
    raw = latent().with_key("deepseek2.attention.temperature_scale", "f32", 0.1)
    refuse(raw, tmp_path, "temperature_length should be above zero, but is 0")
    check(raw.with_key("deepseek2.attention.temperature_length", "u32", 8192), tmp_path)
    check(tiny().with_key(f"{A}.attention.temperature_scale", "f32", 0.1), tmp_path)


def test_no_rotation_at_all(tmp_path: Path) -> None:
    for name in ("gpt-oss", "laguna", "lfm2moe", "mimo2", "minimax-01", "step35"):
        refuse(tiny(name).with_key(f"{name}.rope.dimension_count", "u32", 0), tmp_path, "above")
    key = "granitehybrid.rope.dimension_count"
    check(tiny("granitehybrid").with_key(key, "u32", 0), tmp_path)


def test_expert_groups(tmp_path: Path) -> None:
    raw = tiny().with_key(f"{A}.expert_group_count", "u32", 2)
    refuse(raw, tmp_path, "expert_group_used_count should be 1 to 1")
    check(raw.with_key(f"{A}.expert_group_used_count", "u32", 1), tmp_path)


@pytest.mark.parametrize(("kind", "pattern"), [("u32", 1), ("[bool]", [False] * 3)])
def test_a_sliding_window_that_no_layer_has(tmp_path: Path, kind: str, pattern: object) -> None:
    raw = tiny().with_key(f"{A}.attention.sliding_window_pattern", kind, pattern)
    check(raw, tmp_path)
    raw = raw.with_key(f"{A}.attention.sliding_window", "u32", 64)
    refuse(raw, tmp_path, "should have a layer with a window")


def test_a_model_that_is_not_autoregressive(tmp_path: Path) -> None:
    raw = tiny().with_key(f"{A}.attention.causal", "bool", False)
    refuse(raw, tmp_path, "not autoregressive", UnsupportedModelError)


def test_layers_beyond_their_number(tmp_path: Path) -> None:
    raw = tiny().with_tensor("blk.0.attn_norm.weight", name="blk.3.attn_norm.weight")
    refuse(raw, tmp_path, "but only 3 layers")
    raw = tiny().with_tensor("blk.0.attn_norm.weight", name="blk.x.attn_norm.weight")
    refuse(raw, tmp_path, "but only 3 layers")


# --- the tokenizer -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "kind", "value", "message"),
    [
        ("model", "u32", 1, "the tokenizer 1"),
        ("tokens", "u32", 1, "no list of tokens"),
        ("tokens", "[u32]", [1] * TOKENS, "no list of tokens"),
        ("tokens", "[str]", [], "lists 0 tokens"),
        ("tokens", "[str]", ["x"] * TOKENS, "b'x' twice"),
        ("tokens", "[str]", ["a\0b", "a\0c"], "b'a' twice"),
        ("tokens", "[str]", ["[EMPTY_1]", ""], "b'[EMPTY_1]' twice"),
        ("token_type", "[i32]", [1] * (TOKENS - 1), f"{TOKENS} elements"),
        ("token_type", "i32", 1, "but is a single value"),
        ("scores", "[f32]", [], "but is 0 elements"),
        ("eos_token_id", "u32", TOKENS, f"below the {TOKENS} tokens"),
        ("bos_token_id", "i32", -1, f"below the {TOKENS} tokens"),
        ("eot_token_id", "str", "x", f"below the {TOKENS} tokens"),
    ],
)
def test_tokenizers_that_lie(
    tmp_path: Path, key: str, kind: str, value: object, message: str
) -> None:
    raw = tiny().with_key(f"tokenizer.ggml.{key}", kind, value)
    if key == "tokens":
        raw = raw.without_key("tokenizer.ggml.token_type")
    refuse(raw, tmp_path, message, ModelError)


def test_an_unsupported_tokenizer(tmp_path: Path) -> None:
    raw = tiny().with_key("tokenizer.ggml.model", "str", "no_vocab")
    refuse(raw, tmp_path, "'no_vocab' is not supported", UnsupportedModelError)


@pytest.mark.parametrize("name", ["padding", "unknown"])
def test_rare_tokens_outside_the_vocabulary_are_common_and_harmless(
    tmp_path: Path, name: str
) -> None:
    check(tiny().with_key(f"tokenizer.ggml.{name}_token_id", "u32", TOKENS), tmp_path)


@pytest.mark.parametrize("length", [TOKENS + 1, 5000])
def test_more_kinds_of_tokens_than_tokens_are_harmless(tmp_path: Path, length: int) -> None:
    check(tiny().with_key("tokenizer.ggml.token_type", "[i32]", [1] * length), tmp_path)


def test_the_tokenizers_of_rwkv_and_plamo(tmp_path: Path) -> None:
    tokens = ["<s>", *(repr(bytes((byte,)))[2:-1] for byte in range(256)), "the"]
    assert {"\\x00", "\\t", "\\\\", "'", '"', "a", "\\xff"} <= set(tokens)
    check(vocabulary("rwkv", tokens), tmp_path)
    check(vocabulary("plamo2", spm_tokens()), tmp_path)
    tokens[tokens.index("t")] = "to"  # llama.cpp looks for "t" forever: it begins other tokens
    refuse(vocabulary("rwkv", tokens), tmp_path, "no token t,")


def test_a_sentencepiece_vocabulary_covers_every_byte(tmp_path: Path) -> None:
    raw = spm()
    tokens = next(value for name, _, value in raw.keys if name == "tokenizer.ggml.tokens")
    tokens[tokens.index("<0x41>")] = "A"
    check(raw, tmp_path)
    tokens[tokens.index("A")] = "a longer token"
    refuse(raw, tmp_path, "no token <0x41>")


def test_more_tokens_than_embeddings(tmp_path: Path) -> None:
    raw = tiny().with_tensor("token_embd.weight", dims=(WIDTH, TOKENS - 1))
    refuse(raw, tmp_path, f"should have shape [{WIDTH}, {TOKENS}]")


def test_no_embeddings(tmp_path: Path) -> None:
    refuse(tiny().without_tensor("token_embd.weight"), tmp_path, "but is missing")


# --- tensors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "type_id", "message"),
    [
        ("blk.0.attn_norm.weight", 26, "of F32, but is of type I32"),
        ("blk.0.attn_norm.weight", 30, "of F32, but is of type BF16"),
        ("blk.0.ffn_up.weight", 26, "a type for weights, but is of type I32"),
        ("blk.1.ffn_up_exps.weight", 26, "a type for weights, but is of type I32"),
        ("blk.1.ffn_up_exps.scale", 26, "of F32, but is of type I32"),
        ("blk.1.ffn_gate_inp.weight", 24, "a type for weights, but is of type I8"),
        ("blk.0.ffn_up.weight", 9, "a type for weights, but is of type Q8_1"),
        ("token_embd.weight", 25, "a type for weights, but is of type I16"),
    ],
)
def test_types_that_cannot_be_computed_with(
    tmp_path: Path, name: str, type_id: int, message: str
) -> None:
    raw = tiny().with_tensor(name, type_id=type_id)
    refuse(raw, tmp_path, message, UnsupportedModelError)


def add(name: str, dims: tuple[int, ...], type_id: int) -> RawGguf:
    """Return the tiny model with one more tensor."""
    raw = tiny()
    raw.tensors.append(Tensor(name, dims, math.prod(dims) * (2 if type_id == F16 else 4), type_id))
    return raw


@pytest.mark.parametrize(
    ("name", "dims"),
    [
        ("blk.1.ffn_up_exps.bias", (8, EXPERTS)),
        ("blk.1.ssm_a", (16, WIDTH)),
        ("blk.1.ssm_conv1d.weight", (4, WIDTH)),
        ("blk.1.time_mix_first.weight", (8, 4)),
    ],
)
def test_what_is_added_or_scanned_is_not_in_half_precision(
    tmp_path: Path, name: str, dims: tuple[int, ...]
) -> None:
    refuse(add(name, dims, F16), tmp_path, "should be of F32", UnsupportedModelError)
    check(add(name, dims, F32), tmp_path)


def test_what_llama_cpp_converts_by_itself_may_be_in_half_precision(tmp_path: Path) -> None:
    check(add("blk.1.ple_conv1d.weight", (4, WIDTH), F16), tmp_path)
    check(add("blk.1.attn_q.lora_a", (WIDTH, 4, 2), F16), tmp_path)


def test_a_table_of_integers_is_no_weight(tmp_path: Path) -> None:
    name = "blk.1.ffn_gate_tid2eid.weight"
    check(add(name, (2, TOKENS), I32), tmp_path)
    refuse(add(name, (2, TOKENS), F32), tmp_path, "should be of I32", UnsupportedModelError)


def test_tensors_out_of_order(tmp_path: Path) -> None:
    raw = tiny().with_tensor("blk.0.attn_norm.weight", offset=1 << 20)
    refuse(raw, tmp_path, "right behind the one before", UnsupportedModelError)


def test_an_alignment_too_small_for_the_engine(tmp_path: Path) -> None:
    raw = tiny().with_key("general.alignment", "u32", 8)
    raw.alignment = 8
    refuse(raw, tmp_path, "needs at least 32", UnsupportedModelError)
