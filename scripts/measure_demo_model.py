"""Measure the demo model in llama.cpp against its dense model; write docs/data/demo/.

    python scripts/measure_demo_model.py --work demo-work

Reads the held-out chats that make_demo_recipe.py kept in --work, builds the model there and writes
`quality.json` (KL and perplexity by number of active experts, tuned and not), `answers.md` (ten
prompts, answered under the model's own sampling defaults) and the chats of the gate test.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llama_cpp import Llama

sys.path.insert(0, str(Path(__file__).parents[1]))

from demo_recipe import prompts

from localmoe.demo.builder import demo_model
from localmoe.demo.recipe import load_recipe
from localmoe.demo.source import find_source
from localmoe.demo.writer import SAMPLING, write_model

ROOT = Path(__file__).parents[1]
DATA = ROOT / "docs" / "data" / "demo"
GATE_CHATS = ROOT / "tests" / "gates" / "test_demo_chats.json"
ANSWER_TOKENS = 220
QUESTIONS = """What is the capital of France, and why do people visit it?
Explain why the sky is blue in simple words.
Write a short poem about the sea.
Give me three tips for sleeping better.
How do I make pancakes?
Write a short email asking my boss for a day off.
What is machine learning?
Tell me a short story about a fox and a crow.
What are the benefits of regular exercise?
Write a Python function that adds two numbers."""


@dataclass(frozen=True)
class Chat:
    """A chat's tokens and the position that predicts the first token of the answer."""

    tokens: list[int]
    first: int


def held_out_chats(work: Path, limit: int) -> list[Chat]:
    record = torch.load(work / "held-out.pt", weights_only=True)
    rows = zip(
        record["ids"].tolist(), record["start"].tolist(), record["length"].tolist(), strict=True
    )
    return [Chat(ids[:length], start - 1) for ids, start, length in rows][:limit]


def open_model(path: Path, threads: int, **options: Any) -> Llama:
    return Llama(
        str(path), n_ctx=1024, n_threads=threads, logits_all=True, verbose=False, **options
    )


def answered(model: Llama, chat: Chat) -> np.ndarray:
    """Log-probabilities of the answer's positions, float64 [N, V]."""
    model.reset()
    model.eval(chat.tokens)
    logits = np.array(model.scores[chat.first : len(chat.tokens) - 1], np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def quality(dense: Llama, other: Llama, chats: list[Chat]) -> dict[str, float]:
    """KL per answered token, perplexity of the dense model's answers, agreement on the best."""
    divergence, loss, same = [], [], []
    for chat in chats:
        p, q = answered(dense, chat), answered(other, chat)
        divergence.append((np.exp(p) * (p - q)).sum(-1))
        loss.append(-q[np.arange(len(q)), chat.tokens[chat.first + 1 :]])
        same.append(p.argmax(-1) == q.argmax(-1))
    return {
        "kl_nats": round(float(np.concatenate(divergence).mean()), 4),
        "perplexity": round(float(np.exp(np.concatenate(loss).mean())), 3),
        "same_best_token": round(float(np.concatenate(same).mean()), 3),
        "tokens": int(sum(len(d) for d in divergence)),
    }


def measure(options: argparse.Namespace, path: Path, dense: Llama) -> dict[str, Any]:
    chats = held_out_chats(options.work, options.chats)
    recipe = load_recipe()
    bare = options.work / "untuned.gguf"
    write_model(bare, find_source(), recipe.untuned(recipe.used))
    rows: list[dict[str, Any]] = [{"model": "dense", **quality(dense, dense, chats[:4])}]
    for name, file in (("tuned", path), ("split only", bare)):
        for used in options.active:
            override = {"deepseek.expert_used_count": used}
            model = open_model(file, options.threads, kv_overrides=override)
            rows.append({"model": name, "active": used, **quality(dense, model, chats)})
            model.close()
            print(rows[-1], flush=True)
    rows[0] |= {"perplexity": dense_perplexity(dense, chats)}
    return {"recipe_sha256": recipe.sha256, "default_active": recipe.used, "rows": rows}


def dense_perplexity(dense: Llama, chats: list[Chat]) -> float:
    losses = []
    for chat in chats:
        p = answered(dense, chat)
        losses.append(-p[np.arange(len(p)), chat.tokens[chat.first + 1 :]])
    return round(float(np.exp(np.concatenate(losses).mean())), 3)


def write_answers(path: Path, model: Llama) -> None:
    how = ", ".join(f"{name} {value}" for name, value in SAMPLING.items())
    parts = [f"# Ten prompts, answered by the demo model\n\nSampling: {how}, seed 1.\n"]
    for question in QUESTIONS.split("\n"):
        answer = model.create_completion(
            prompts.chat(question),
            max_tokens=ANSWER_TOKENS,
            temperature=SAMPLING["temp"],
            top_p=SAMPLING["top_p"],
            min_p=SAMPLING["min_p"],
            top_k=0,
            repeat_penalty=1.0,
            seed=1,
        )
        choice = answer["choices"][0]
        end = "" if choice["finish_reason"] == "stop" else " […]"
        parts.append(f"## {question}\n\n{choice['text'].strip()}{end}\n")
        print(parts[-1], flush=True)
    path.write_text("\n".join(parts))


def write_gate_chats(work: Path) -> None:
    """Keep six held-out chats for the gate test, as text."""
    model = Llama(str(find_source()), vocab_only=True, verbose=False)
    kept = []
    for chat in held_out_chats(work, 30)[::5]:
        question, answer = chat.tokens[: chat.first + 1], chat.tokens[chat.first + 1 :]
        parts = (model.detokenize(ids, special=True).decode() for ids in (question, answer))
        kept.append(dict(zip(("question", "answer"), parts, strict=True)))
    GATE_CHATS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", type=Path, default=Path("demo-work"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chats", type=int, default=32, help="held-out chats to judge on")
    parser.add_argument("--active", type=int, nargs="+", default=[24, 18, 12, 8, 6, 4])
    parser.add_argument("--answers-only", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = parse()
    DATA.mkdir(parents=True, exist_ok=True)
    write_gate_chats(options.work)
    began = time.monotonic()
    path = demo_model(options.work / "model")
    print(f"built in {time.monotonic() - began:.1f} s: {path.stat().st_size} bytes", flush=True)
    write_answers(DATA / "answers.md", Llama(str(path), n_ctx=1024, n_threads=2, verbose=False))
    if options.answers_only:
        return
    dense = open_model(find_source(), options.threads)
    result = measure(options, path, dense)
    (DATA / "quality.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
