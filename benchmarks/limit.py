"""Claim: localmoe comes close to what the machine allows, in decode, prefill and start-up.

    python benchmarks/limit.py [--model FILE.gguf] [--only PART] [--rounds 5]

    T_io       bytes read per token / bandwidth of the device, read alone in the same round with the
               same sizes and as many reads at once; of several readings the fastest
    T_compute  time per token with every expert in memory: another engine, without any callback,
               along the same tokens at the same positions, in the same round
    limit      max(T_io, T_compute)            fraction = limit / measured time per token

Parts: decode (the synthetic model at 3 and 6 GiB), demo (the demonstration model on real text, six
experts active, with slots for 36 and 70 % of its experts), trace (a recorded routing replayed, the
same shares), prefill (2,000 tokens, and llama.cpp's mmap under the same limit), start (cold, to the
first token), busy (beside a process that keeps a core busy), where (where a token's time goes).

Run as root: streamed sides and the peer then run under a hard limit, with a cold page cache. Takes
20 minutes on two cores. Ends with status 1 unless every criterion holds.
"""

from __future__ import annotations

import time
from pathlib import Path

import limit_parts as parts
from limit_figures import Criterion
from manifest import HERE, REPOSITORY, SCRATCH, Answer, entry_state, options, record
from synthetic import Shape, synthetic_model

from localmoe.demo.builder import demo_model
from localmoe.prediction.trace_reader import read_trace
from localmoe.settings import Settings
from localmoe.weights.gguf import build_catalog
from localmoe.weights.shards import read_shards

PARTS = ("decode", "demo", "trace", "prefill", "start", "busy", "where")
SMALL_MIB, LARGE_MIB = 3072, 6144
SHARES = {"36 %": 0.36, "70 %": 0.70}
"""Of the experts: about what 3 and 6 GiB hold of the synthetic model's."""
DEMO_EXPERTS_USED = 6
BOX_MIB = 8192
"""For sides whose slots are fixed: it only makes the page cache cold."""
TRACE = HERE / "routing-trace.npz"
TEXT = REPOSITORY / "LICENSE"


def decode_case(model: Path, tokens: int) -> parts.DecodeCase:
    sides = {
        f"{mib >> 10} GiB": parts.Streamed(
            Settings(memory_bytes=mib << 20, context_tokens=1024), mib
        )
        for mib in (SMALL_MIB, LARGE_MIB)
    }
    return parts.DecodeCase(model, sides, tokens, resident=Settings(context_tokens=1024))


def shares_case(
    model: Path, tokens: int, used: int | None = None, **more: object
) -> parts.DecodeCase:
    """Return a case whose sides have slots for shares of all experts."""
    layers = build_catalog(read_shards(model)).layers
    experts = sum(layer.n_experts for layer in layers)

    def settings(slots: int | None) -> Settings:
        return Settings(context_tokens=1024, experts_used=used, slots=slots)

    sides = {
        name: parts.Streamed(settings(int(share * experts)), BOX_MIB)
        for name, share in SHARES.items()
    }
    return parts.DecodeCase(model, sides, tokens, resident=settings(None), **more)  # type: ignore[arg-type]


def trace_model() -> Path:
    """Return a model of the synthetic one's shapes, with the trace's layers and experts."""
    trace = read_trace(TRACE)
    layers = len(trace.layers)
    shape = Shape(layers=layers, experts=trace.n_experts, experts_used=trace.n_experts_used)
    return synthetic_model(SCRATCH / f"synthetic-{layers}x{trace.n_experts}.gguf", shape)


def measure(part: str, model: Path, rounds: int) -> Answer:
    if part == "decode":
        return parts.measure_decode(decode_case(model, 64), rounds)
    if part == "demo":
        case = shares_case(demo_model(SCRATCH), 128, DEMO_EXPERTS_USED, text=TEXT)
        return parts.measure_decode(case, rounds)
    if part == "trace":
        return parts.measure_decode(shares_case(trace_model(), 40, trace=TRACE), rounds)
    if part == "prefill":
        return parts.measure_prefill(model, SMALL_MIB, min(rounds, 2))
    if part == "start":
        return parts.measure_start(model, SMALL_MIB, rounds)
    if part == "busy":
        return parts.measure_busy(model, SMALL_MIB, rounds, 24)
    return parts.measure_where(model, SMALL_MIB, min(rounds, 2), 48)


def criteria(found: Answer) -> list[Criterion]:
    """Return the verdict's lines on those parts that were measured."""
    lines = []
    for part in ("decode", "demo", "trace"):
        for (name, values), bound in zip(
            found.get(part, {}).get("fraction", {}).items(), (0.80, 0.90), strict=False
        ):
            lines.append(Criterion(f"{part}, {name}: fraction", values["median"], bound))
    if "prefill" in found:
        prefill = found["prefill"]
        lines.append(Criterion("prefill: fraction", prefill["fraction"]["median"], 0.75))
        ratio = prefill["ratio"]["median"]
        lines.append(Criterion("prefill: times llama.cpp's mmap", ratio, parts.WANTED_PEER_RATIO))
    if "start" in found:
        share = found["start"]["share_of_bound"]["1"]["median"]
        lines.append(Criterion("start: share of its bound", share, 1.0, at_most=True))
    if "busy" in found:
        lines.append(Criterion("busy: share of speed", found["busy"]["share"]["median"], 0.45))
    return lines


def main() -> None:
    parser = options(__doc__, rounds=5)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--only", choices=PARTS, action="append", help="may be given several times")
    parser.add_argument("--name", help="of the record; default: limit, or limit-PART")
    given = parser.parse_args()
    wanted = given.only or PARTS
    model = given.model or synthetic_model(SCRATCH / "synthetic.gguf", Shape())
    entry = entry_state()
    found: Answer = {}
    seconds: dict[str, float] = {}
    for part in wanted:
        began = time.monotonic()
        found[part] = measure(part, model, given.rounds)
        seconds[part] = time.monotonic() - began
    lines = criteria(found)
    verdict = {line.name: line.to_json() for line in lines}
    name = given.name or "-".join(["limit", *(given.only or ())])
    record(given.data, name, entry, {"verdict": verdict, "seconds": seconds, **found})
    for line in lines:
        value = "not measured" if line.value is None else f"{line.value:.3f}"
        print(f"{line.name:36} {value:>12}  {verdict[line.name]['wanted']:>8}  {line.holds}")
    if not all(line.holds for line in lines):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
