"""Claim: llama.cpp's repacked weights are not worth a copy here, and one expert is slow to repack.

    python benchmarks/layouts.py [--layers 6] [--rounds 8]

llama.cpp by default repacks weights for kernels that take several rows at once; experts that are
streamed stay in the file's own layout. Both layouts of a synthetic model, all in memory, decode and
read prompts in turn in one process. Then one expert is repacked alone, on one core, and decoding is
repeated with fewer active experts: what of a token's time is experts.
"""

from __future__ import annotations

import ctypes as C
import statistics
import time
from pathlib import Path

import numpy as np
from limit_figures import spread
from manifest import SCRATCH, Answer, entry_state, options, record
from synthetic import Shape, synthetic_model

from localmoe.backends.llama.bindings import InitParams, L, declare, ggml_init, shared_library
from localmoe.backends.llama.source import open_source
from localmoe.bench.plain_llama import PlainLlama
from localmoe.bench.request import PeerRequest
from localmoe.bench.tokens import token_stream
from localmoe.settings import available_threads

LAYOUTS = {"file": False, "repacked": True}
PROMPT_TOKENS, WARM_UP_TOKENS, BURST_TOKENS = 512, 32, 16
ACTIVE = (8, 4, 1)
Q4_K = 12  # GGML_TYPE_Q4_K
REPACK_TYPE = "_Z35ggml_backend_cpu_repack_buffer_typev"


def open_side(model: Path, *, repack: bool, used: int | None = None) -> PlainLlama:
    source = open_source(model, used)
    source.close()
    request = PeerRequest(str(model), "ram", 0, 0, 1024, 512, available_threads(), used)
    return PlainLlama(source, request, repack=repack)


def clear(side: PlainLlama) -> None:
    L.llama_memory_clear(L.llama_get_memory(side._context), True)


def timed(side: PlainLlama, tokens: list[int]) -> tuple[float, np.ndarray]:
    began = time.perf_counter()
    logits = side.decode(tokens)
    return time.perf_counter() - began, logits


def compare(model: Path, rounds: int) -> Answer:
    """Decode and read a prompt in both layouts, in turn; say how far their logits are apart."""
    sides = {name: open_side(model, repack=repack) for name, repack in LAYOUTS.items()}
    tokens = token_stream(PROMPT_TOKENS + BURST_TOKENS * rounds, next(iter(sides.values())).n_vocab)
    prompts: dict[str, list[float]] = {name: [] for name in sides}
    token_seconds: dict[str, list[float]] = {name: [] for name in sides}
    logits: dict[str, np.ndarray] = {}
    for _ in range(max(1, rounds // 3)):
        for name, side in sides.items():
            clear(side)
            seconds, logits[name] = timed(side, tokens[:PROMPT_TOKENS])
            prompts[name].append(PROMPT_TOKENS / seconds)
    for side in sides.values():
        clear(side)
        side.decode(tokens[:WARM_UP_TOKENS])
    for at in range(WARM_UP_TOKENS, WARM_UP_TOKENS + BURST_TOKENS * rounds, BURST_TOKENS):
        for name, side in sides.items():
            token_seconds[name] += [timed(side, [t])[0] for t in tokens[at : at + BURST_TOKENS]]
    for side in sides.values():
        side.close()
    return {
        "prefill_tokens_per_second": {name: spread(values) for name, values in prompts.items()},
        "decode_token_seconds": {name: spread(values) for name, values in token_seconds.items()},
        "logits_equal": bool(np.array_equal(logits["file"], logits["repacked"])),
        "largest_difference": float(np.abs(logits["file"] - logits["repacked"]).max()),
        "deviation_of_logits": float(logits["file"].std()),
    }


def repack_one_expert(width: int, expert_width: int) -> Answer:
    """Hand the three matrices of an expert to llama.cpp's buffer type that repacks."""
    base, cpu = shared_library("ggml-base"), shared_library("ggml-cpu")
    buffer_type = declare(cpu, REPACK_TYPE, C.c_void_p)()
    new_tensor = declare(
        base, "ggml_new_tensor", C.c_void_p, C.c_void_p, C.c_int, C.c_int, C.POINTER(C.c_int64)
    )
    allocate = declare(
        base, "ggml_backend_alloc_ctx_tensors_from_buft", C.c_void_p, C.c_void_p, C.c_void_p
    )
    put = declare(
        base, "ggml_backend_tensor_set", None, C.c_void_p, C.c_void_p, C.c_size_t, C.c_size_t
    )
    total, nbytes = 0.0, 0
    rng = np.random.default_rng(0)
    for shape in ((width, expert_width), (width, expert_width), (expert_width, width)):
        context = ggml_init(InitParams(1 << 16, None, True))
        tensor = new_tensor(context, Q4_K, 3, (C.c_int64 * 3)(*shape, 1))
        allocate(context, buffer_type)
        data = np.frombuffer(rng.bytes(shape[0] * shape[1] // 256 * 144), np.uint8)
        samples = []
        for _ in range(12):
            began = time.perf_counter()
            put(tensor, data.ctypes.data, 0, data.nbytes)
            samples.append(time.perf_counter() - began)
        total, nbytes = total + statistics.median(samples), nbytes + data.nbytes
    return {"seconds": total, "bytes": nbytes, "bytes_per_second": nbytes / total}


def by_active_experts(model: Path, rounds: int) -> Answer:
    """Decode with fewer active experts: what is left without them is everything else."""
    found: Answer = {}
    for name, repack in LAYOUTS.items():
        sides = {used: open_side(model, repack=repack, used=used) for used in ACTIVE}
        samples: dict[int, list[float]] = {used: [] for used in ACTIVE}
        tokens = token_stream(WARM_UP_TOKENS + BURST_TOKENS * rounds, sides[1].n_vocab)
        for side in sides.values():
            side.decode(tokens[:WARM_UP_TOKENS])
        for at in range(WARM_UP_TOKENS, len(tokens), BURST_TOKENS):
            for used, side in sides.items():
                samples[used] += [timed(side, [t])[0] for t in tokens[at : at + BURST_TOKENS]]
        for side in sides.values():
            side.close()
        medians = {used: statistics.median(values) for used, values in samples.items()}
        slope, rest = np.polyfit(list(medians), list(medians.values()), 1)
        found[name] = {
            "token_seconds": medians,
            "seconds_per_active_expert": float(slope),
            "share_of_experts": float(1 - rest / medians[max(ACTIVE)]),
        }
    return found


def main() -> None:
    parser = options(__doc__, rounds=8)
    parser.add_argument("--layers", type=int, default=6)
    given = parser.parse_args()
    shape = Shape(layers=given.layers)
    model = synthetic_model(SCRATCH / f"synthetic-{given.layers}-layers.gguf", shape)
    entry = entry_state()
    L.llama_backend_init()
    result: Answer = {
        "layers": given.layers,
        **compare(model, given.rounds),
        "repack_one_expert": repack_one_expert(shape.embedding, shape.expert_width),
        "by_active_experts": by_active_experts(model, given.rounds),
    }
    record(given.data, "layouts", entry, result)
    for name in LAYOUTS:
        ms = 1e3 * result["decode_token_seconds"][name]["median"]
        speed = result["prefill_tokens_per_second"][name]["median"]
        share = result["by_active_experts"][name]["share_of_experts"]
        print(f"{name:10} {ms:6.2f} ms per token, prefill {speed:6.1f} tok/s, experts {share:.0%}")
    print(f"one expert: {1e3 * result['repack_one_expert']['seconds']:.2f} ms to repack")


if __name__ == "__main__":
    main()
