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
        str(path),
        n_ctx=512,
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=True,
        verbose=False,
        **options,
    )


def open_chat(path: Path, threads: int) -> Llama:
    return Llama(str(path), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)


def answered(model: Llama, chat: Chat) -> np.ndarray:
    """Log-probabilities of the answer's positions, float64 [N, V]."""
    model.reset()
    model.eval(chat.tokens)
    logits = np.array(model.scores[chat.first : len(chat.tokens) - 1], np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


class Tally:
    """Sums over answered tokens of one model."""

    def __init__(self) -> None:
        self.divergence = self.loss = 0.0
        self.same = self.tokens = 0

    def add(self, p: np.ndarray, q: np.ndarray, targets: list[int]) -> None:
        """Compare the dense model's log-probabilities p with q, both [N, V]."""
        self.divergence += float((np.exp(p) * (p - q)).sum())
        self.loss -= float(q[np.arange(len(q)), targets].sum())
        self.same += int((p.argmax(-1) == q.argmax(-1)).sum())
        self.tokens += len(q)

    def row(self) -> dict[str, float]:
        """KL and perplexity per answered token, share of equal best tokens."""
        return {
            "kl_nats": round(self.divergence / self.tokens, 4),
            "perplexity": round(float(np.exp(self.loss / self.tokens)), 3),
            "same_best_token": round(self.same / self.tokens, 3),
            "tokens": self.tokens,
        }


def measure(options: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Run the same chats through the dense model and all variants."""
    recipe, bare = load_recipe(), options.work / "untuned.gguf"
    write_model(bare, find_source(), recipe.untuned(recipe.used))
    dense = open_model(find_source(), options.threads)
    models = {("dense", recipe.experts): dense}
    for name, file in (("tuned", path), ("split only", bare)):
        for used in options.active:
            override = {"deepseek.expert_used_count": used}
            models[name, used] = open_model(file, options.threads, kv_overrides=override)
    tallies = {key: Tally() for key in models}
    for number, chat in enumerate(held_out_chats(options.work, options.chats)):
        p = answered(dense, chat)
        for key, model in models.items():
            q = p if model is dense else answered(model, chat)
            tallies[key].add(p, q, chat.tokens[chat.first + 1 :])
        print(number, flush=True)
    rows = [{"model": k[0], "active": k[1], **tally.row()} for k, tally in tallies.items()]
    return {"recipe_sha256": recipe.sha256, "default_active": recipe.used, "rows": rows}


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
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--chats", type=int, default=16, help="held-out chats to judge on")
    parser.add_argument("--active", type=int, nargs="+", default=[24, 18, 12, 10, 8, 6])
    parser.add_argument("--answers-only", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = parse()
    DATA.mkdir(parents=True, exist_ok=True)
    write_gate_chats(options.work)
    began = time.monotonic()
    path = demo_model(options.work / "model")
    print(f"built in {time.monotonic() - began:.1f} s: {path.stat().st_size} bytes", flush=True)
    write_answers(DATA / "answers.md", open_chat(path, options.threads))
    if options.answers_only:
        return
    result = measure(options, path)
    print(json.dumps(result["rows"], indent=1))
    (DATA / "quality.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
