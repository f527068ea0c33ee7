"""One contestant of benchmarks/cuda.py in a process of its own: a request in, JSON out."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Answer = dict[str, Any]
Step = Callable[[list[int]], torch.Tensor]
"""From the next tokens to the logits of the last one."""
PROMPT_TOKENS = 32


def main() -> None:
    """Measure what standard input asks for; say what went wrong, if it did, as an answer, too."""
    request = json.load(sys.stdin)
    device = torch.device(request["device"])
    try:
        answer = _CONTESTANTS[request["contestant"]](request, device)
    except Exception as error:
        answer = {"failed": f"{type(error).__name__}: {str(error).strip()[:500]}"}
    print(json.dumps(answer))


def localmoe(request: Answer, device: torch.device) -> Answer:
    """The engine of this project, with so many experts in the device's memory."""
    from localmoe.backends.torch.device import TorchDevice
    from localmoe.backends.torch.load import load
    from localmoe.settings import Settings

    settings = Settings(
        slots=request["slots"],
        memory_bytes=request["memory_bytes"],
        vram_bytes=request["vram_bytes"],
        context_tokens=request["context_tokens"],
    )
    began = time.perf_counter()
    with load(Path(request["folder"]), settings, device=TorchDevice(device)) as engine:
        loading = time.perf_counter() - began

        def step(tokens: list[int]) -> torch.Tensor:
            return torch.from_numpy(engine.decode(tokens)[-1])

        def read() -> Answer:
            engine.truncate(0)
            return _decode(step, request)

        first = read()
        before = engine.stats()
        rounds = [read() for _ in range(request["rounds"])]
        done = engine.stats() - before
        tokens = request["rounds"] * (PROMPT_TOKENS + request["tokens"])
        return {
            **_answer(rounds, loading, device),
            "warm_up": first,
            "planned_bytes": engine.plan.total_bytes,
            "slots": engine.plan.slots,
            "experts": engine.plan.experts,
            "hit_rate": done.hit_rate,
            "copied_bytes_per_token": done.copied_bytes / tokens,
            "read_bytes_per_token": done.read_bytes / tokens,
            "link_bytes_per_second": _link_rate(device),
            "link_share": done.copied_bytes / done.decode_seconds / _link_rate(device),
        }


def transformers_alone(request: Answer, device: torch.device) -> Answer:
    """transformers, resident on the device, or with accelerate's offloading to host memory."""
    from transformers import AutoModelForCausalLM, DynamicCache

    where: Answer = {"device_map": {"": device}}
    if request["contestant"] == "accelerate":
        room = {0: request["vram_bytes"], "cpu": request["memory_bytes"]}
        where = {"device_map": "auto", "max_memory": room}
    began = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(request["folder"], dtype=torch.bfloat16, **where)
    model.eval()
    loading = time.perf_counter() - began
    rounds = []
    for _ in range(request["rounds"] + 1):
        cache = DynamicCache(config=model.config)

        def step(tokens: list[int], cache: DynamicCache = cache) -> torch.Tensor:
            ids = torch.tensor([tokens], device=device)
            with torch.inference_mode():
                found = model(
                    input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1
                )
            return found.logits[0, -1].float().cpu()

        rounds.append(_decode(step, request))
    return {**_answer(rounds[1:], loading, device), "warm_up": rounds[0]}


_CONTESTANTS: dict[str, Callable[[Answer, torch.device], Answer]] = {
    "localmoe": localmoe,
    "transformers": transformers_alone,
    "accelerate": transformers_alone,
}


def _decode(step: Step, request: Answer) -> Answer:
    """Read a prompt, then decode greedily; return the seconds of each step."""
    vocabulary = request["vocabulary"]
    prompt = [(31 * place + 3) % vocabulary for place in range(PROMPT_TOKENS)]
    began = time.perf_counter()
    logits = step(prompt)
    prefill, seconds = time.perf_counter() - began, []
    for _ in range(request["tokens"]):
        began = time.perf_counter()
        logits = step([int(logits.argmax())])
        seconds.append(time.perf_counter() - began)
    return {"prefill_seconds": prefill, "token_seconds": seconds}


def _answer(rounds: list[Answer], loading: float, device: torch.device) -> Answer:
    module = torch.get_device_module(device)
    peak = getattr(module, "max_memory_allocated", None)
    total = sum(sum(one["token_seconds"]) for one in rounds)
    return {
        "loading_seconds": loading,
        "tokens_per_second": sum(len(one["token_seconds"]) for one in rounds) / total,
        "rounds": rounds,
        "max_memory_allocated_bytes": peak(device) if peak else None,
    }


def _link_rate(device: torch.device, nbytes: int = 256 << 20) -> float:
    """Return what the link does alone, with pinned memory and copies as long as an expert's."""
    pinned = torch.empty(nbytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    target = torch.empty(nbytes, dtype=torch.uint8, device=device)
    module = torch.get_device_module(device)
    best = 0.0
    for _ in range(4):
        module.synchronize()
        began = time.perf_counter()
        target.copy_(pinned, non_blocking=True)
        module.synchronize()
        best = max(best, nbytes / (time.perf_counter() - began))
    return best


if __name__ == "__main__":
    main()
