"""Sample many sequences at once from the dense model, and keep what it thought on the way.

A record of n sequences, padded to T tokens: `ids` int32 [n, T], `start` and `length` int32 [n]
(first answered position, end), `best` int32 and `logp` float16 [n, T, 48] (the teacher's most
likely next tokens), `hidden` float16 [n, T, H, D] (residuals at the layers `HIDDEN_AT`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from demo_recipe.dense import END, FF, HEAD, KV_HEADS, LAYERS, D, Weights, rms, rope, rope_table

HIDDEN_AT = (7, 14, 21, 28)
BEST = 48
Record = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Style:
    """How to sample: longest sequence in tokens, temperature, nucleus, seed."""

    tokens: int = 256
    temperature: float = 0.7
    top_p: float = 0.95
    seed: int = 0


class _Decoder:
    """One step at a time through the dense model, all sequences in step."""

    def __init__(self, w: Weights, n: int, tokens: int) -> None:
        self.w = w
        device = w["token_embd.weight"].device
        self.keys = torch.zeros(LAYERS, n, KV_HEADS, tokens, HEAD, device=device)
        self.values = torch.zeros_like(self.keys)
        self.cos, self.sin = rope_table(tokens, device)
        self.qkv = [
            torch.cat([w[f"blk.{i}.attn_{n}.weight"] for n in "qkv"]) for i in range(LAYERS)
        ]
        self.gate_up = [
            torch.cat([w[f"blk.{i}.ffn_{n}.weight"] for n in ("gate", "up")]) for i in range(LAYERS)
        ]

    def keep(self, rows: torch.Tensor) -> None:
        """Forget the sequences that are not in `rows`."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]

    def step(self, ids: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return final states [n, D] and residuals [n, H, D] after token number t."""
        x, hidden = self.w["token_embd.weight"][ids], []
        for layer in range(LAYERS):
            x = x + self._attend(layer, x, t)
            if layer in HIDDEN_AT:
                hidden.append(x)
            h = F.linear(rms(x, self.w[f"blk.{layer}.ffn_norm.weight"]), self.gate_up[layer])
            h = F.silu(h[:, :FF]) * h[:, FF:]
            x = x + F.linear(h, self.w[f"blk.{layer}.ffn_down.weight"])
        return rms(x, self.w["output_norm.weight"]), torch.stack(hidden, 1)

    def _attend(self, layer: int, x: torch.Tensor, t: int) -> torch.Tensor:
        n = len(x)
        cos, sin = self.cos[t : t + 1], self.sin[t : t + 1]
        a = F.linear(rms(x, self.w[f"blk.{layer}.attn_norm.weight"]), self.qkv[layer])
        q, k, v = a.split([D, KV_HEADS * HEAD, KV_HEADS * HEAD], 1)
        self.keys[layer, :, :, t] = rope(k.view(n, KV_HEADS, 1, HEAD), cos, sin)[:, :, 0]
        self.values[layer, :, :, t] = v.view(n, KV_HEADS, HEAD)
        q = rope(q.view(n, -1, 1, HEAD), cos, sin).view(n, KV_HEADS, -1, HEAD)
        keys, values = self.keys[layer, :, :, : t + 1], self.values[layer, :, :, : t + 1]
        o = F.scaled_dot_product_attention(q, keys, values).reshape(n, D)
        return F.linear(o, self.w[f"blk.{layer}.attn_output.weight"])


def _likely(w: Weights, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the most likely next tokens and their log-probabilities, each [n, BEST]."""
    logits = F.linear(x, w["token_embd.weight"])
    value, index = logits.topk(BEST)
    # in place: a fresh buffer of this size costs more than the exponentials
    rest = logits.sub_(value[:, :1]).exp_().sum(1, keepdim=True).log_()
    return index, value - value[:, :1] - rest


def _choose(
    best: torch.Tensor, logp: torch.Tensor, style: Style, random: torch.Generator
) -> torch.Tensor:
    p = F.softmax(logp / style.temperature, -1)
    p = torch.where(p.cumsum(-1) - p > style.top_p, 0.0, p)
    return best.gather(1, torch.multinomial(p, 1, generator=random))[:, 0].int().cpu()


def sample(w: Weights, prompts: list[list[int]], style: Style) -> Record:
    """Continue every prompt until <|im_end|> or `style.tokens`."""
    device = w["token_embd.weight"].device
    random = torch.Generator(device).manual_seed(style.seed)
    n, tokens = len(prompts), style.tokens
    record = _empty_record(prompts, tokens)
    ids, start, length = record["ids"], record["start"], record["length"]
    decoder, alive = _Decoder(w, n, tokens), torch.arange(n)
    done = torch.zeros(n, dtype=torch.bool)
    for t in range(tokens):
        x, hidden = decoder.step(ids[alive, t].long().to(device), t)
        record["hidden"][alive, t] = hidden.half().cpu()
        answering = start[alive] <= t + 1
        if not answering.any():
            continue
        best, logp = _likely(w, x)
        record["best"][alive, t], record["logp"][alive, t] = best.int().cpu(), logp.half().cpu()
        if t + 1 == tokens:
            break
        chosen = _choose(best, logp, style, random)
        ids[alive, t + 1] = torch.where(answering, chosen, ids[alive, t + 1])
        length[alive[~done[alive] & answering]] = t + 2
        done[alive] |= answering & (chosen == END)
        # now and then only: it copies the whole cache
        if done[alive].float().mean() > 0.1:
            decoder.keep((~done[alive]).nonzero()[:, 0].to(device))
            alive = alive[~done[alive]]
        if not len(alive):
            break
    return record


def _empty_record(prompts: list[list[int]], tokens: int) -> Record:
    n = len(prompts)
    ids = torch.full((n, tokens), END, dtype=torch.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    return {
        "ids": ids,
        "start": torch.tensor([len(p) for p in prompts], dtype=torch.int32),
        "length": torch.tensor([len(p) for p in prompts], dtype=torch.int32),
        "best": torch.zeros(n, tokens, BEST, dtype=torch.int32),
        "logp": torch.zeros(n, tokens, BEST, dtype=torch.float16),
        "hidden": torch.zeros(n, tokens, len(HIDDEN_AT), D, dtype=torch.float16),
    }
