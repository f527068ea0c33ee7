"""Google's Gemma 4, in the form with experts."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.model import ZooModel
from zoo.shape import Shape
from zoo.tokenizer import vocabulary

_FULL_SIZE, _FULL_KV_HEADS = 64, 1
"""Of layers without a window; the others have those of the shape."""
_BORROWING = 2
"""Layers at the end that attend to the keys and values of earlier ones."""
_PER_LAYER = 16
"""Width of the embedding that a token has for each layer."""


def gemma4(model: Draft) -> None:
    """Experts beside a dense feed-forward, each between norms; two kinds of attention."""
    shape = model.shape
    has_window = [i not in (3, shape.layers - 1) for i in range(shape.layers)]
    # The graph multiplies the embedding by the root of its width.
    layers.common(model, embedding_std=shape.embedding**-0.5, tied=True)
    layers.expert_keys(model)
    _attention_keys(model, has_window)
    model.key(embedding_length_per_layer_input=_PER_LAYER, final_logit_softcapping=30.0)
    _per_layer_embedding(model)
    model.noise("rope_freqs.weight", _FULL_SIZE // 2, std=0.1, mean=1.5)
    for i, windowed in enumerate(has_window):
        prefix = f"blk.{i}."
        _attention(model, prefix, windowed=windowed, borrows=i >= shape.layers - _BORROWING)
        for name in ("ffn_norm", "pre_ffw_norm_2"):
            model.norm(prefix + name, shape.embedding)
        for name in ("post_ffw_norm", "post_ffw_norm_1", "post_ffw_norm_2"):
            model.norm(prefix + name, shape.embedding, mean=0.5)
        layers.gated(model, prefix, "", shape.feed_forward)
        layers.router(model, prefix)
        # The graph divides the router's input by the root of its width, then multiplies by this.
        root = shape.embedding**0.5
        model.noise(prefix + "ffn_gate_inp.scale", shape.embedding, std=0.1 * root, mean=root)
        layers.experts(model, i)
        model.noise(prefix + "ffn_down_exps.scale", shape.experts, std=0.2, mean=1.0)
        model.matrix(prefix + "inp_gate", _PER_LAYER, shape.embedding)
        model.matrix(prefix + "proj", shape.embedding, _PER_LAYER)
        model.norm(prefix + "post_norm", shape.embedding, mean=0.5)
        model.noise(prefix + "layer_output_scale.weight", 1, std=0.1, mean=0.8)


def _attention_keys(model: Draft, has_window: list[bool]) -> None:
    shape = model.shape
    model.key(
        attention__head_count_kv=[shape.kv_heads if w else _FULL_KV_HEADS for w in has_window],
        attention__key_length=_FULL_SIZE,
        attention__value_length=_FULL_SIZE,
        attention__key_length_swa=shape.head_size,
        attention__value_length_swa=shape.head_size,
        attention__shared_kv_layers=_BORROWING,
        attention__sliding_window=shape.window,
        attention__sliding_window_pattern=has_window,
        rope__dimension_count=_FULL_SIZE,
        rope__dimension_count_swa=shape.head_size,
        rope__freq_base=1e6,
        rope__freq_base_swa=10000.0,
    )


def _attention(model: Draft, prefix: str, *, windowed: bool, borrows: bool) -> None:
    """Add attention between norms; without a window, the keys are the values, too."""
    shape = model.shape
    size = shape.head_size if windowed else _FULL_SIZE
    kv_heads = shape.kv_heads if windowed else _FULL_KV_HEADS
    model.norm(prefix + "attn_norm", shape.embedding)
    model.matrix(prefix + "attn_q", shape.heads * size, shape.embedding)
    # Queries are not divided by the root of their width: a third keeps attention from one place.
    model.norm(prefix + "attn_q_norm", size, mean=0.3)
    if not borrows:
        model.matrix(prefix + "attn_k", kv_heads * size, shape.embedding)
        model.norm(prefix + "attn_k_norm", size)
        if windowed:
            model.matrix(prefix + "attn_v", kv_heads * size, shape.embedding)
    model.matrix(prefix + "attn_output", shape.embedding, shape.heads * size)
    model.norm(prefix + "post_attention_norm", shape.embedding, mean=0.5)


def _per_layer_embedding(model: Draft) -> None:
    """Add what gives each layer an input of its own from the token."""
    width, embedding = model.shape.layers * _PER_LAYER, model.shape.embedding
    model.matrix("per_layer_token_embd", len(vocabulary()), width, gain=width**0.5 / 4)
    model.matrix("per_layer_model_proj", width, embedding)
    model.norm("per_layer_proj_norm", _PER_LAYER)


MODELS: dict[str, ZooModel] = {
    "gemma4": ZooModel(
        "gemma4",
        gemma4,
        Shape(layers=6, fused_gate_up=True),
        stands_for="Gemma 4 26B-A4B",
        covers="experts beside a dense layer, GELU, gate and up in one matrix, a scale per expert, "
        "windows, heads that differ per layer, shared keys and values, embeddings per layer",
    ),
}
