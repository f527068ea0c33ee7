"""The text stages: questions (half of them the model's own), chats in shards, held-out chats."""

from __future__ import annotations

from pathlib import Path

import torch
from llama_cpp import Llama

from demo_recipe import prompts
from demo_recipe.dense import END, Weights
from demo_recipe.sample import Record, Style, sample

SHARD = 128  # sequences
LONGEST_QUESTION = 72  # tokens, the system message included


class Tokenizer:
    """The dense model's tokenizer."""

    def __init__(self, path: Path) -> None:
        self._model = Llama(str(path), vocab_only=True, verbose=False)

    def encode(self, text: str) -> list[int]:
        """Return token ids; chat markup becomes single tokens."""
        return list(self._model.tokenize(text.encode(), add_bos=False, special=True))


def invented(w: Weights, tokenizer: Tokenizer, n: int, seed: int) -> list[list[int]]:
    """Return n prompts whose question the dense model made up, as a user would.

    Given an open user turn, a chat model writes one: more varied than any list.
    """
    style = Style(tokens=LONGEST_QUESTION, temperature=1.0, top_p=0.98, seed=seed)
    opening, closing = tokenizer.encode(prompts.SYSTEM), tokenizer.encode(prompts.ANSWER)
    record = sample(w, [opening] * n, style)
    found = []
    for ids, length in zip(record["ids"].tolist(), record["length"].tolist(), strict=True):
        question = ids[len(opening) : length]
        question = question[:-1] if question[-1] == END else question
        if question:
            found.append(opening + question + closing)
    return found


def chats(w: Weights, tokenizer: Tokenizer, shard: int) -> Record:
    """Return one shard of chats: even shards answer our questions, odd ones the model's own."""
    warm = Style(temperature=(0.7, 0.9)[shard // 2 % 2], seed=1000 + shard)
    if shard % 2:
        questions = invented(w, tokenizer, SHARD, 5000 + shard)
    else:
        first = shard // 2 * SHARD
        asked = prompts.asked()[first : first + SHARD]
        questions = [tokenizer.encode(prompts.chat(question)) for question in asked]
    return sample(w, questions, warm)


def held_out(w: Weights, tokenizer: Tokenizer) -> Record:
    """Return the chats for judging: two answers to each held-out question."""
    questions = [tokenizer.encode(prompts.chat(q)) for q in prompts.held_out() * 2]
    return sample(w, questions, Style(seed=99))


def join(records: list[Record]) -> Record:
    """Return all records as one."""
    return {key: torch.cat([r[key] for r in records]) for key in records[0]}
