"""Dense models: no experts, so nothing to stream. The R1 distills are of this kind."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.model import ZooModel
from zoo.shape import Shape


def _decoder(model: Draft, *, bias: bool = False, qk_norm: bool = False) -> None:
    """Grouped-query attention and a gated feed-forward in every layer."""
    shape = model.shape
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", shape.embedding)
        layers.grouped_query(model, prefix, qk_norm=qk_norm)
        if bias:
            for name, heads in (("q", shape.heads), ("k", shape.kv_heads), ("v", shape.kv_heads)):
                model.noise(f"{prefix}attn_{name}.bias", heads * shape.head_size, std=0.1)
        model.norm(prefix + "ffn_norm", shape.embedding)
        layers.gated(model, prefix, "", shape.feed_forward)


def llama(model: Draft) -> None:
    """Llama's form, and Mistral's."""
    layers.common(model)
    layers.grouped_query_keys(model)
    _decoder(model)


def qwen2(model: Draft) -> None:
    """Biases on query, key and value."""
    layers.common(model)
    layers.grouped_query_keys(model)
    _decoder(model, bias=True)


def qwen3(model: Draft) -> None:
    """Norms on query and key."""
    layers.common(model)
    layers.grouped_query_keys(model)
    _decoder(model, qk_norm=True)


def gemma3(model: Draft) -> None:
    """Sandwich norms, windows in five of six layers, an output matrix that is the embedding."""
    shape = model.shape
    # The graph multiplies the embedding by the root of its width.
    layers.common(model, embedding_std=shape.embedding**-0.5, tied=True)
    layers.grouped_query_keys(model)
    model.key(attention__sliding_window=shape.window)
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", shape.embedding)
        layers.grouped_query(model, prefix, qk_norm=True)
        model.norm(prefix + "post_attention_norm", shape.embedding, mean=0.5)
        model.norm(prefix + "ffn_norm", shape.embedding)
        layers.gated(model, prefix, "", shape.feed_forward)
        model.norm(prefix + "post_ffw_norm", shape.embedding, mean=0.5)


def mamba(model: Draft) -> None:
    """No attention at all: a convolution and a state in every layer."""
    shape = model.shape
    inner, state, rank, kernel = 2 * shape.embedding, 8, 4, 4
    layers.common(model)
    model.key(
        ssm__conv_kernel=kernel,
        ssm__inner_size=inner,
        ssm__state_size=state,
        ssm__time_step_rank=rank,
    )
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", shape.embedding)
        model.matrix(prefix + "ssm_in", 2 * inner, shape.embedding)
        model.noise(prefix + "ssm_conv1d.weight", inner, kernel, std=0.5)
        model.noise(prefix + "ssm_conv1d.bias", inner, std=0.1)
        model.matrix(prefix + "ssm_x", rank + 2 * state, inner)
        model.matrix(prefix + "ssm_dt", inner, rank)
        model.noise(prefix + "ssm_dt.bias", inner, std=0.1)
        model.noise(prefix + "ssm_a", inner, state, std=0.1, mean=-0.5)
        model.noise(prefix + "ssm_d", inner, std=0.1, mean=1.0)
        model.matrix(prefix + "ssm_out", shape.embedding, inner)


_WIDE = Shape(embedding=128, resident_type="Q8_0")  # four heads of 32: qwen2 wants no others

MODELS = {
    "llama": ZooModel(
        "llama",
        llama,
        Shape(resident_type="Q4_0"),
        stands_for="Llama 2 and 3, Mistral, SmolLM2, DeepSeek-R1-Distill-Llama",
        covers="grouped-query attention",
    ),
    "qwen2": ZooModel(
        "qwen2",
        qwen2,
        _WIDE,
        stands_for="Qwen2, Qwen2.5, DeepSeek-R1-Distill-Qwen",
        covers="biases on query, key and value",
    ),
    "qwen3": ZooModel(
        "qwen3",
        qwen3,
        Shape(shards=2),
        stands_for="Qwen3 up to 32B",
        covers="q/k norms, split files",
    ),
    "gemma3": ZooModel(
        "gemma3",
        gemma3,
        Shape(layers=7),
        stands_for="Gemma 3",
        covers="sandwich norms, windows, an output matrix that is the embedding",
    ),
    "mamba": ZooModel(
        "mamba",
        mamba,
        Shape(heads=0, kv_heads=0, feed_forward=0),
        stands_for="Mamba, Falcon Mamba",
        covers="a recurrent state in every layer, no attention",
    ),
}
