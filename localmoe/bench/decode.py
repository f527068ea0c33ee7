"""The decode benchmark of one loaded model: speed, where the time went, and the limit."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from localmoe.backends.base import MeasuredEngine, Stats
from localmoe.backends.opening import Open, opening
from localmoe.bench.device import DeviceSpeed, measure_device
from localmoe.bench.forced import Forced, force, percentile
from localmoe.bench.limit import Limit
from localmoe.bench.machine import describe_machine, describe_versions, process_age_seconds
from localmoe.bench.request import DecodeRequest
from localmoe.bench.tokens import text_tokens, token_stream
from localmoe.errors import SettingsError
from localmoe.settings import Progress, Settings

_RESIDENT_SAMPLES = 16
Report = dict[str, object]


def measure_decode(
    request: DecodeRequest, progress: Progress | None = None, open_it: Open | None = None
) -> Report:
    """Load the model, force it along the stream, measure what the machine allows.

    `open_it` is that of `backends.opening`, where it was begun before. Returns what `--json`
    prints, but for the peak of memory. Raises LocalMoeError.
    """
    path = Path(request.model)
    if open_it is None:
        with opening(path, request.settings.engine) as begun:
            return measure_decode(request, progress, begun)
    with open_it(path, request.settings, progress) as engine:
        return measure_engine(engine, request, progress)


def measure_engine(
    engine: MeasuredEngine, request: DecodeRequest, progress: Progress | None = None
) -> Report:
    """Measure an engine that was loaded for this request and has decoded nothing yet.

    Returns what `measure_decode` does. Raises LocalMoeError.
    """
    return _Measurement(engine, request, progress).run()


@dataclass
class _Measurement:
    engine: MeasuredEngine
    request: DecodeRequest
    progress: Progress | None
    _tokens: list[int] = field(init=False)
    _after: list[Stats] = field(default_factory=list)
    """The counters before the first counted token, and after each."""

    def run(self) -> Report:
        """Prefill, decode, then the two limits: the device alone, and the processor alone."""
        self._check_room()
        self._tokens = self._stream()
        began = time.perf_counter()
        self.engine.decode(self._tokens[: self.request.prompt_tokens])
        prefill_seconds = time.perf_counter() - began
        first_token_seconds = process_age_seconds()
        grow_seconds = self._warm_up()
        self._after = [self.engine.stats()]
        forced = self._force()
        spent = self._after[-1] - self._after[0]
        resident, why_unknown = self._resident_samples()
        device = self._device_speed()
        report = figures(forced, spent, resident, device)
        return {
            **report,
            "load_seconds": self.engine.load_seconds,
            "budget_bytes": self.engine.plan.budget_bytes,
            "slots": self.engine.plan.slots,
            "logits_sha256": forced.logits_sha256[self.request.tokens],
            "extra": {
                **self._circumstances(),
                **_samples(forced, self._after, resident, device),
                "first_token_seconds": first_token_seconds,
                "grow_seconds": grow_seconds,
                "resident_unknown": None if resident else why_unknown,
                "prefill_tokens_per_second": self.request.prompt_tokens / prefill_seconds,
                "prefill_chunk_tokens": self.engine.plan.prefill_chunk_tokens,
                "prefill_split_layers": self._after[0].split_layers,
                "prefill_split_seconds": self._after[0].split_seconds,
            },
        }

    @property
    def _counted_from(self) -> int:
        return self.request.prompt_tokens + self.request.warm_up_tokens

    def _check_room(self) -> None:
        more = self.request.warm_up_tokens + self.request.tokens
        room = self.engine.plan.context_tokens
        if self.request.prompt_tokens + more > room:
            raise SettingsError(
                f"{self.request.prompt_tokens} prompt tokens and {more} more do not "
                f"fit into a context of {room}. Use a larger --context (up to what the model was "
                "trained for), or fewer --tokens."
            )

    def _stream(self) -> list[int]:
        count = self._counted_from + self.request.tokens
        if self.request.text:
            return text_tokens(Path(self.request.text), count, self.engine.tokenizer)
        return token_stream(count, self.engine.tokenizer.n_vocab)

    def _warm_up(self) -> float | None:
        """Decode what no figure counts; with the first token wait until all slots are there.

        Returns how long that took; None where no warm-up was asked for.
        """
        seconds = None
        for token in self._tokens[self.request.prompt_tokens : self._counted_from]:
            self.engine.decode([token])
            if seconds is None:
                began = time.perf_counter()
                if self.engine.slot_pool:
                    self.engine.slot_pool.wait_grown()
                seconds = time.perf_counter() - began
        return seconds

    def _force(self) -> Forced:
        count, progress = self.request.tokens, self.progress

        def on_token(done: int) -> None:
            self._after.append(self.engine.stats())
            if progress:
                progress("decoding", done, count)

        tokens = self._tokens[self._counted_from :]
        return force(self.engine.decode, tokens, self.request.hash_after, on_token)

    def _resident_samples(self) -> tuple[tuple[float, ...], str]:
        """Take the last token back and decode it again: every expert it needs is in a slot.

        Returns seconds per token, and why there are none if there are none.
        """
        samples: list[float] = []
        end = len(self._tokens) - 1
        kept = self.engine.truncate(end)
        if kept < end:  # recurrent layers go back to marks alone: come to this place once more
            self.engine.decode(self._tokens[kept:end], "none")
        self.engine.mark()
        for _ in range(_RESIDENT_SAMPLES):
            if self.engine.truncate(end) != end:
                return (), "this model cannot take one token back"
            misses = self.engine.stats().misses
            began = time.perf_counter()
            self.engine.decode(self._tokens[-1:])
            seconds = time.perf_counter() - began
            if self.engine.stats().misses == misses:
                samples.append(seconds)
        return tuple(samples), "the slots hold fewer experts than one token routes to"

    def _device_speed(self) -> DeviceSpeed | None:
        return device_speed(self.engine, self.request.settings, self.request.device_seconds)

    def _circumstances(self) -> Report:
        request, catalog = self.request, self.engine.catalog
        return {
            "model": {
                "file": Path(catalog.paths[0]).name,
                "architecture": catalog.architecture,
                "resident_bytes": catalog.resident_nbytes,
                "expert_bytes": catalog.expert_nbytes,
                "experts": catalog.n_experts_total,
                "experts_per_token": catalog.token_demand,
            },
            "streams": self.engine.plan.streams,
            "tokens": request.tokens,
            "prompt_tokens": request.prompt_tokens,
            "warm_up_tokens": request.warm_up_tokens,
            "threads": request.settings.n_threads,
            "callback": "compiled" if self.engine.compiled_counts() else "Python",
            "read_workers": request.settings.read_workers,
            "plan": asdict(self.engine.plan),
            "machine": describe_machine(),
            "versions": describe_versions(),
        }


def device_speed(engine: MeasuredEngine, settings: Settings, seconds: float) -> DeviceSpeed | None:
    """Read experts alone; None for a dense model, of which nothing is read."""
    if not engine.catalog.layers:
        return None
    return measure_device(engine.catalog, workers=settings.read_workers, seconds=seconds)


def figures(
    forced: Forced, spent: Stats, resident: tuple[float, ...], device: DeviceSpeed | None
) -> Report:
    """Return speed, cache and limit. `spent` is of the forced tokens alone.

    `device` None: a dense model, whose figures about experts are None.
    """
    count = len(forced.token_seconds)
    compute_seconds = statistics.median(resident) if resident else None
    read_per_token = spent.read_bytes / count
    limit = Limit(read_per_token / device.bytes_per_second if device else 0.0, compute_seconds)
    return {
        "tokens_per_second": forced.tokens_per_second,
        "hit_rate": spent.hit_rate if device else None,
        "bytes_read_per_token": read_per_token if device else None,
        "stall_seconds_per_token": spent.stall_seconds / count if device else None,
        "device_bytes_per_second": device.bytes_per_second if device else None,
        "resident_tokens_per_second": 1 / compute_seconds if compute_seconds else None,
        "limit_tokens_per_second": limit.tokens_per_second,
        "fraction_of_limit": limit.fraction(forced.tokens_per_second),
    }


def _samples(
    forced: Forced, after: Sequence[Stats], resident: tuple[float, ...], device: DeviceSpeed | None
) -> Report:
    spent = [b - a for a, b in zip(after, after[1:], strict=False)]
    return {
        "token_seconds_p50": percentile(forced.token_seconds, 0.5),
        "token_seconds_p95": percentile(forced.token_seconds, 0.95),
        "token_seconds": list(forced.token_seconds),
        "token_read_bytes": [one.read_bytes for one in spent],
        "token_stall_seconds": [one.stall_seconds for one in spent],
        "resident_token_seconds": list(resident),
        "device_read_bytes": device.mean_read_nbytes if device else None,
        "device_reads": device.reads if device else 0,
        "logits_sha256_after": {str(n): value for n, value in forced.logits_sha256.items()},
    }
