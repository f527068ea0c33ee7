"""Claim: a product with packed experts takes less time than decoding them first, or BF16 experts.

    python benchmarks/packed_kernels.py [--tokens 1] [--only fp8-block]      # on a GPU

What a decode step asks of one part of a layer: 8 experts for each token. In turn: the kernel that
reads them as they lie in their slots; decoding each and multiplying, as where there is no kernel;
and multiplying decoded BF16 matrices. Steps go round through slots that no cache holds all of.
Rates count the bytes that each side has to read at least.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from typing import Any

import torch
from limit_figures import spread
from manifest import REPOSITORY, Answer, entry_state, options, record
from torch.nn.functional import linear

from localmoe.backends.torch.kernels import find_kernel

sys.path.insert(0, str(REPOSITORY / "tests"))
from zoo_torch.formats import FORMATS  # noqa: E402
from zoo_torch.parts import Shape, SlottedPart, make_part  # noqa: E402

EXPERTS_USED, STEPS = 8, 20
SHAPES = {"qwen3-30b, gate and up": (768, 2048, 2), "qwen3-30b, down": (2048, 768, 1)}
LARGE = {"kimi-k2, gate and up": (2048, 7168, 2), "kimi-k2, down": (7168, 2048, 1)}
TURNED = {"gpt-oss, gate and up": (5760, 2880, 1), "gpt-oss, down": (2880, 2880, 1)}
LEAST_NBYTES = 256 << 20
"""Of all slots: several times a GPU's last cache."""


def shapes_of(format_name: str) -> dict[str, Shape]:
    """Return the parts that are measured of a format."""
    if format_name == "mxfp4":
        return {
            name: Shape(format_name, *size, bias=torch.bfloat16, is_transposed=True)
            for name, size in TURNED.items()
        }
    return {name: Shape(format_name, *size) for name, size in (SHAPES | LARGE).items()}


def many_slots(shape: Shape) -> SlottedPart:
    """Return a part on the GPU, the same expert in all of its slots."""
    one = make_part(shape, slots=1)
    slots = max(2 * EXPERTS_USED, LEAST_NBYTES // one.place.stride)
    place = one.place._replace(slots=slots)
    first = one.memory[place.start :]
    memory = torch.cat([one.memory[: place.start], first.repeat(slots)]).cuda()
    return SlottedPart(shape, one.sources, place, memory)


class Sides:
    """The same product in three ways, each a step after the other through the slots."""

    def __init__(self, part: SlottedPart, tokens: int) -> None:
        shape, device = part.shape, part.memory.device
        found = find_kernel(part.sources, part.place, device, is_transposed=shape.is_transposed)
        if found.kernel is None:
            raise SystemExit(f"{shape.format_name}: no kernel: {found.reason}")
        self.kernel, self._part = found.kernel, part
        self._x = torch.randn(tokens, shape.columns, device=device).to(shape.dtype)
        pairs = tokens * EXPERTS_USED
        self._rows = torch.arange(pairs, dtype=torch.int32, device=device) // EXPERTS_USED
        order = torch.arange(STEPS * pairs) % part.place.slots
        self._slots = [each.tolist() for each in order.view(STEPS, pairs)]
        self._on_device = [
            torch.tensor(each, dtype=torch.int32, device=device) for each in self._slots
        ]
        matrix = part.matrix(0).contiguous()
        self.decoded_nbytes = matrix.nbytes
        copies = max(2, LEAST_NBYTES // matrix.nbytes)
        self._matrices = [matrix.clone() for _ in range(copies)]
        self._bias = part.bias(0)

    def packed(self, step: int) -> torch.Tensor:
        """Multiply all pairs at once, packed."""
        return self.kernel.multiply(self._part.memory, self._x, self._on_device[step], self._rows)

    def decoding(self, step: int) -> torch.Tensor:
        """Decode each expert, and multiply."""
        return self._one_by_one(step, lambda slot: self._part.matrix(slot))

    def bf16(self, step: int) -> torch.Tensor:
        """Multiply matrices that were decoded before."""
        return self._one_by_one(step, lambda slot: self._matrices[slot % len(self._matrices)])

    def _one_by_one(self, step: int, matrix: Callable[[int], torch.Tensor]) -> torch.Tensor:
        inputs = self._x.repeat_interleave(EXPERTS_USED, dim=0)
        return torch.cat(
            [
                linear(inputs[place : place + 1], matrix(slot), self._bias)
                for place, slot in enumerate(self._slots[step])
            ]
        )


def seconds_of(side: Callable[[int], torch.Tensor]) -> float:
    """Return the GPU's seconds for a step, the mean of some."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    for step in range(STEPS):
        side(step)
    ended.record()
    ended.synchronize()
    milliseconds: float = began.elapsed_time(ended)
    return milliseconds / 1e3 / STEPS


def measure(shape: Shape, tokens: int, rounds: int) -> Answer:
    """Time the three sides in turn."""
    part = many_slots(shape)
    sides = Sides(part, tokens)
    ways = {"packed": sides.packed, "decoding": sides.decoding, "bf16": sides.bf16}
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, side in ways.items():
            seconds = seconds_of(side)
            if number:  # the first one compiles and warms up
                samples[name].append(seconds)
    packed_nbytes = sum(source.expert_nbytes for source in part.sources)
    nbytes = dict.fromkeys(ways, packed_nbytes) | {"bf16": sides.decoded_nbytes}
    pairs = tokens * EXPERTS_USED
    found, wanted = (side(0).float() for side in (sides.packed, sides.bf16))
    return {
        "pairs": pairs,
        "slots": part.place.slots,
        "packed_bytes": packed_nbytes,
        "bf16_bytes": sides.decoded_nbytes,
        "largest_difference": float((found - wanted).abs().max() / wanted.abs().max()),
        "seconds": {name: spread(values) for name, values in samples.items()},
        "bytes_per_second": {
            name: spread([pairs * nbytes[name] / each for each in values])
            for name, values in samples.items()
        },
    }


def main() -> None:
    """Measure and record."""
    parser = options(__doc__, rounds=9)
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--only", choices=FORMATS, action="append", help="these formats alone")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(
            f"needs a CUDA GPU, and torch {torch.__version__} finds none: run it where there is "
            "one, with a CUDA build of torch"
        )
    entry = entry_state()
    torch.manual_seed(0)
    formats: dict[str, Any] = {}
    print("| format | part | packed, GB/s | decoding, times as long | BF16, times as long |")
    print("|---|---|---|---|---|")
    for format_name in given.only or FORMATS:
        for name, shape in shapes_of(format_name).items():
            answer = measure(shape, given.tokens, given.rounds)
            formats.setdefault(format_name, {})[name] = answer
            rate = answer["bytes_per_second"]["packed"]["median"] / 1e9
            seconds = {side: values["median"] for side, values in answer["seconds"].items()}
            times = {side: each / seconds["packed"] for side, each in seconds.items()}
            print(
                f"| {format_name} | {name} | {rate:.0f} | {times['decoding']:.1f} "
                f"| {times['bf16']:.1f} |",
                flush=True,
            )
    device = torch.cuda.get_device_properties(0)
    result: Answer = {
        "tokens": given.tokens,
        "rounds": given.rounds,
        "gpu": {
            "name": device.name,
            "capability": [device.major, device.minor],
            "memory_bytes": device.total_memory,
        },
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton"),
        "formats": formats,
    }
    record(given.data, "packed-kernels", entry, result)


if __name__ == "__main__":
    main()
