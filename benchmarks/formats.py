"""Claim: FP8 and FP4 decode several times as fast as in their own libraries, to the same bits.

    python benchmarks/formats.py [--rows 2048] [--columns 4096]

One matrix per format, filled with normally distributed weights as the format's library writes them,
is decoded to BF16 on one core, by localmoe and by what the format's own library does, in turn. The
time is the core's, so that other work on the machine slows it down but is not counted. INT4 takes
as long as in its library, but no memory of the matrix's size.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from limit_figures import spread
from manifest import REPOSITORY, Answer, entry_state, options, record

from localmoe.backends.torch.formats import format_of

sys.path.insert(0, str(REPOSITORY / "tests"))
from zoo_torch.formats import FORMATS, quantization_config, store  # noqa: E402
from zoo_torch.headers import header_of  # noqa: E402
from zoo_torch.references import reference  # noqa: E402

LINEAR, FUSED = "experts.3.up_proj.weight", "experts.up_proj"


def measure(format_name: str, rows: int, columns: int, rounds: int, turned: bool = False) -> Answer:
    """Decode in turn; rates are stored bytes per second. `turned`: into a transposed view."""
    fused = format_name == "mxfp4"
    name = FUSED if fused else LINEAR
    weight = torch.randn((1, columns, rows) if fused else (rows, columns)) * 0.02
    stored = store(name, weight.to(torch.bfloat16), format_name)
    config = quantization_config(format_name)
    form = format_of(name, header_of(stored), config, stacked=fused)
    parts = [stored[each][0] if fused else stored[each] for each in form.tensor_names(name)]
    out = torch.empty(form.shape[::-1] if turned else form.shape, dtype=torch.bfloat16)
    out = out.T if turned else out
    found = [out]
    sides: dict[str, Callable[[], object]] = {
        "localmoe": lambda: form.decode(parts, out),
        "library": lambda: found.__setitem__(
            0, reference(name, stored, format_name, torch.bfloat16)
        ),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        for side, decode in sides.items():
            began = time.thread_time()
            decode()
            if number:  # the first one warms up
                seconds[side].append(time.thread_time() - began)
    nbytes = sum(form.nbytes)
    return {
        "stored_bytes": nbytes,
        "decoded_bytes": out.nbytes,
        "bits_equal": torch.equal(out, found[0].view(out.shape)),
        "bytes_per_second": {
            side: spread([nbytes / value for value in values]) for side, values in seconds.items()
        },
        "ratio": statistics.median(seconds["library"]) / statistics.median(seconds["localmoe"]),
    }


def main() -> None:
    parser = options(__doc__, rounds=9)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--columns", type=int, default=4096)
    given = parser.parse_args()
    entry = entry_state()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    result: Answer = {
        "rows": given.rows,
        "columns": given.columns,
        "rounds": given.rounds,
        "torch": torch.__version__,
        "formats": {
            name: measure(name, given.rows, given.columns, given.rounds)
            for name in FORMATS
            if name != "bf16"  # nothing to do
        },
    }
    turned = measure("mxfp4", given.rows, given.columns, given.rounds, turned=True)
    result["formats"]["mxfp4, transposed view"] = turned
    record(given.data, "formats", entry, result)
    print("| format | stored, GB/s | written, GB/s | its library, GB/s | times | bits equal |")
    print("|---|---|---|---|---|---|")
    for name, each in result["formats"].items():
        ours, theirs = (
            each["bytes_per_second"][side]["median"] for side in ("localmoe", "library")
        )
        written = ours * each["decoded_bytes"] / each["stored_bytes"]
        equal = "yes" if each["bits_equal"] else "NO"
        print(
            f"| {name} | {ours / 1e9:.2f} | {written / 1e9:.2f} | {theirs / 1e9:.3f} "
            f"| {each['ratio']:.0f} | {equal} |"
        )


if __name__ == "__main__":
    main()
