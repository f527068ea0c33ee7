"""Claim: a safetensors checkpoint of 550 MB is ready in 1.5 s and 100 MB, and its budget holds.

    python benchmarks/torch_memory.py [--rounds 5]      # as root: with a hard limit

Each load is a process of its own, told apart from the imports of torch and transformers, which take
longer than it. Then 48 tokens are read and 64 decoded in three budgets, under a hard limit as large
as the budget (`membox`, which counts the page cache, too).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from manifest import REPOSITORY, SCRATCH, Answer, bench_decode, entry_state, options, record

SIZES = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "moe_intermediate_size": 256,
    "num_hidden_layers": 9,
    "num_dense_layers": 1,
    "num_experts": 84,
    "num_local_experts": 84,
    "num_experts_per_tok": 8,
    "num_shared_experts": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
LOAD = """
import json, sys, time
import psutil
import localmoe.backends.torch.load as torch_load
from localmoe.settings import Settings
before = psutil.Process().memory_info().rss
began = time.perf_counter()
engine = torch_load.load(sys.argv[1], Settings(memory_bytes=4 << 30, context_tokens=1024))
seconds = time.perf_counter() - began
after = psutil.Process().memory_info().rss
print(json.dumps({"seconds": seconds, "rss_bytes": after - before,
    "budget_bytes": engine.plan.budget_bytes, "slots": engine.plan.slots}))
"""
WRITE = """
import json, sys
import torch
from transformers import AfmoeConfig, AfmoeForCausalLM
torch.manual_seed(0)
model = AfmoeForCausalLM._from_config(AfmoeConfig(**json.loads(sys.argv[2])), dtype=torch.bfloat16)
model.save_pretrained(sys.argv[1])
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
letters = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
tokenizer.save(sys.argv[1] + "/tokenizer.json")
"""
BUDGETS_MIB = (700, 850, 1200)
"""The last one holds all experts."""


def child(*arguments: str) -> str:
    """Run Python; return what it prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    if done.returncode:
        raise SystemExit(f"exit {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def checkpoint() -> Path:
    """Write the checkpoint once; return its folder."""
    folder = SCRATCH / "afmoe"
    if not (folder / "tokenizer.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        child("-c", WRITE, str(folder), json.dumps(SIZES))
    return folder


def in_budget(folder: Path, mib: int) -> Answer:
    """Decode in a budget, under a limit as large where this runs as root."""
    arguments = ("--memory", f"{mib}MiB", "--prompt-tokens", "48", "--tokens", "64")
    limit = mib if os.geteuid() == 0 else None
    answer = bench_decode(folder, *arguments, limit_mib=limit)
    kept = ("tokens_per_second", "hit_rate", "slots", "peak_rss_bytes", "logits_sha256")
    return {
        "budget_mib": mib,
        "group_peak_mib": answer.get("group_peak_mib"),
        **{name: answer[name] for name in kept},
    }


def main() -> None:
    """Measure and record."""
    given = options(__doc__, rounds=5).parse_args()
    entry = entry_state()
    folder = checkpoint()
    nbytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    loads = [json.loads(child("-c", LOAD, str(folder))) for _ in range(given.rounds)]
    for load in loads:
        print(
            f"loaded {nbytes >> 20} MiB in {load['seconds']:.2f} s, {load['rss_bytes'] >> 20} MiB"
        )
    budgets = [in_budget(folder, mib) for mib in BUDGETS_MIB]
    for row in budgets:
        print(json.dumps(row))
    if len({row["logits_sha256"] for row in budgets}) > 1:
        raise SystemExit("the budgets do not end in the same logits")
    result = {"checkpoint_bytes": nbytes, "sizes": SIZES, "loads": loads, "budgets": budgets}
    record(given.data, "torch-memory", entry, result)


if __name__ == "__main__":
    main()
