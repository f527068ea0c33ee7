"""Claim: experts in a GPU's memory, with host memory behind it, beat offloading whole layers.

    python benchmarks/cuda.py [--disk-gb 24] [--seconds 560]      # on a machine with an NVIDIA GPU
    python benchmarks/cuda.py --tiny --device cpu                 # whether it all runs

Checkpoints of Trinity Large's true shape and as many layers as fit on the disk, in BF16, FP8 and
INT4, with a quarter, half and all of their experts in the GPU's memory; in BF16 against
transformers with everything resident, and with accelerate's offloading in as much memory as
localmoe has. Each is a process of its own. Random weights route evenly: a trained model finds more
experts in memory.

What does not fit into the time that is given is left out, and said so.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
from cuda_checkpoint import FORMATS, LARGE, TINY, write_checkpoint
from manifest import HERE, SCRATCH, Answer, entry_state, options, record

SHARES = (0.25, 0.5, 1.0)
_BYTES_PER_NUMBER = {"bf16": 2.0, "fp8": 1.0, "int4": 0.5625}
_LEAST_SECONDS = 40
"""A contestant that would have less is left out."""
_HOST_SHARE = 0.8
GB = 10**9


class Clock:
    """How much of the time that was given is left."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left_seconds(self) -> float:
        """See Clock."""
        return self._end - time.monotonic()


def sizes_of(given: argparse.Namespace, format_name: str) -> Answer:
    """Return the shape, with as many layers as the disk has room for."""
    sizes = dict(TINY if given.tiny else LARGE)
    expert = 3 * sizes["hidden_size"] * sizes["moe_intermediate_size"]
    layer = sizes["num_experts"] * expert * _BYTES_PER_NUMBER[format_name]
    moe_layers = 3 if given.tiny else max(1, int(given.disk_gb * GB / layer))
    sizes["num_hidden_layers"] = sizes["num_dense_layers"] + moe_layers
    return sizes


def contest(request: Answer, clock: Clock) -> Answer:
    """Run one contestant; return its answer, or why there is none."""
    if clock.left_seconds < _LEAST_SECONDS:
        return {"left_out": "no time was left"}
    try:
        done = subprocess.run(
            [sys.executable, str(HERE / "cuda_worker.py")],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            check=False,
            timeout=clock.left_seconds,
        )
    except subprocess.TimeoutExpired:
        return {"left_out": "it took longer than the time that was left"}
    if done.returncode:
        return {"failed": f"exit {done.returncode}: {done.stderr.strip()[-500:]}"}
    answer: Answer = json.loads(done.stdout.splitlines()[-1])
    return answer


def requests(given: argparse.Namespace, folder: Path, sizes: Answer) -> list[Answer]:
    """Return who is measured on a checkpoint, in turn."""
    experts = (sizes["num_hidden_layers"] - sizes["num_dense_layers"]) * sizes["num_experts"]
    common = {
        "folder": str(folder),
        "device": given.device,
        "vocabulary": sizes["vocab_size"],
        "rounds": given.rounds,
        "tokens": 8 if given.tiny else 48,
        "context_tokens": 128,
        "memory_bytes": int(psutil.virtual_memory().available * _HOST_SHARE),
        "vram_bytes": given.vram_gb * GB,
    }
    return [
        {**common, "contestant": "localmoe", "share": share, "slots": int(experts * share)}
        for share in SHARES
    ]


def peers(ours: list[tuple[Answer, Answer]]) -> list[Answer]:
    """Return the same for transformers: resident, and offloading in the memory that ours took."""
    common = {**ours[0][0], "share": 1.0}
    found: list[Answer] = [{**common, "contestant": "transformers"}]
    for request, answer in ours:
        peak = answer.get("max_memory_allocated_bytes")
        if peak and request["share"] < 1:
            found.append({**request, "contestant": "accelerate", "vram_bytes": peak})
    return found


def show(request: Answer, answer: Answer) -> None:
    """Print one line."""
    name = f"{request['contestant']}, {request['share']:.0%} of experts on the device"
    if "tokens_per_second" not in answer:
        print(f"  {name}: {answer.get('failed') or answer.get('left_out')}", flush=True)
        return
    words = [f"{answer['tokens_per_second']:.2f} tok/s"]
    if "hit_rate" in answer:
        words.append(f"{answer['hit_rate']:.0%} found there")
        words.append(
            f"link {answer['link_share']:.0%} of {answer['link_bytes_per_second']:.2e} B/s"
        )
    peak = answer.get("max_memory_allocated_bytes")
    if peak and "planned_bytes" in answer:
        words.append(f"{peak / GB:.2f} of {answer['planned_bytes'] / GB:.2f} GB planned")
        if peak > answer["planned_bytes"]:
            words.append("MORE THAN PLANNED")
    print(f"  {name}: {', '.join(words)}", flush=True)


def compare(given: argparse.Namespace, format_name: str, clock: Clock) -> Answer:
    """Write a checkpoint, measure everybody on it, and remove it."""
    sizes = sizes_of(given, format_name)
    folder = SCRATCH / f"cuda-{format_name}"
    began = time.perf_counter()
    try:
        write_checkpoint(folder, sizes, format_name)
        nbytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        seconds = time.perf_counter() - began
        print(f"{format_name}: {nbytes / GB:.1f} GB written in {seconds:.0f} s", flush=True)
        ours = []
        for request in requests(given, folder, sizes):
            ours.append((request, contest(request, clock)))
            show(*ours[-1])
        others = []
        for request in peers(ours) if format_name == "bf16" else []:
            others.append((request, contest(request, clock)))
            show(*others[-1])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [{"request": request, "answer": answer} for request, answer in (*ours, *others)]
    return {"format": format_name, "checkpoint_bytes": nbytes, "sizes": sizes, "rows": rows}


def main() -> None:
    """Measure and record."""
    parser = options(__doc__, rounds=2)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a checkpoint of a few MB")
    parser.add_argument("--disk-gb", type=float, default=30.0, help="for one checkpoint at a time")
    parser.add_argument("--vram-gb", type=int, default=75)
    parser.add_argument("--seconds", type=float, default=560.0, help="for everything together")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "this benchmark wants an NVIDIA GPU and a torch with CUDA: torch sees none. Whether "
            "the script runs: --tiny --device cpu"
        )
    entry, clock = entry_state(), Clock(given.seconds)
    card = torch.cuda.get_device_name() if given.device == "cuda" else "none"
    formats = [compare(given, each, clock) for each in FORMATS]
    result = {"card": card, "torch": torch.__version__, "tiny": given.tiny, "formats": formats}
    record(given.data, "cuda", entry, result)
    answers = [row["answer"] for each in formats for row in each["rows"]]
    if over := [a for a in answers if _is_over(a)]:
        raise SystemExit(f"{len(over)} runs took more of the device's memory than was planned")


def _is_over(answer: Answer) -> bool:
    peak = answer.get("max_memory_allocated_bytes")
    return bool(peak and peak > answer.get("planned_bytes", peak))


if __name__ == "__main__":
    main()
