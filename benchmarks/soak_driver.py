"""Uses an engine as at random, and keeps the history that led to its context."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from soak_job import Holdings, Job, SoakError, Step, digest, position_of

from localmoe import Engine, InterruptedDecodeError
from localmoe.backends.base import Logits, Stats

SAMPLE_TOKENS, OPENING_TOKENS, PROGRESS_TOKENS = 50, 500, 1000
LONGEST_ANSWER, LONGEST_HISTORY = 24, 800
STATES = 3
"""Files that states are saved to."""


class Driver:
    """Decodes, takes back, cancels, saves, restores and re-opens at random.

    `history` is what led to the present context from an empty one. What left no trace is not in it:
    cancelled calls that the engine could take back, and for a restored state all that came after it
    was saved. (A restore drops the engine's marks, the replay keeps them. It cannot matter: newer
    marks come first, and going back to 0 ends a history.)
    """

    def __init__(self, job: Job) -> None:
        self.job, self.rng = job, np.random.default_rng(job.seed)
        self.holdings = Holdings()
        self.history: list[Step] = []
        self.saved: dict[Path, list[Step]] = {}
        self.tokens = self.checks = 0
        self.done: Counter[str] = Counter()
        self.samples: list[dict[str, int]] = []
        self.openings: list[dict[str, Any]] = []
        self.closed: list[dict[str, int]] = []
        self.stats: list[Stats] = []
        self.seconds_per_token = 0.01
        self.turns: list[tuple[float, Callable[[], None]]] = [
            (0.30, self.read),
            (0.22, self.answer),
            (0.06, self.mark),
            (0.12, self.rewind),
            (0.12, self.cancel),
            (0.10, self.save),
            (0.08, self.restore),
        ]
        self.engine = self.open()

    def run(self) -> None:
        """Take turns until there are enough tokens and checks."""
        weights = [weight for weight, _ in self.turns]
        while self.tokens < self.job.tokens or self.checks < self.job.checks:
            if self.tokens >= OPENING_TOKENS * len(self.openings):
                self.reopen()
            self.turns[self.rng.choice(len(weights), p=weights)][1]()
            if sum(len(step.get("tokens", ())) for step in self.history) > LONGEST_HISTORY:
                self.truncate(0)
            self.check()
            self.sample()
        self.close()

    def read(self) -> None:
        """Decode a prompt, in one call."""
        mode: Logits = ("none", "last", "all")[self.rng.integers(3)]  # type: ignore[assignment]
        tokens = self.prompt(2)
        began = time.perf_counter()
        self.decode(tokens, mode)
        self.seconds_per_token = (time.perf_counter() - began) / len(tokens)

    def answer(self) -> None:
        """Decode tokens one by one."""
        for _ in range(self.rng.integers(1, LONGEST_ANSWER + 1)):
            self.make_room(1)
            self.decode(self.random_tokens(1), "last")

    def rewind(self) -> None:
        """Take back some of the context."""
        self.truncate(int(self.rng.integers(0, self.engine.position + 1)))
        self.done["truncations"] += 1

    def cancel(self) -> None:
        """Interrupt a prompt from another thread; the prompt may be faster."""
        tokens, before = self.prompt(self.job.chunk_tokens), self.engine.position
        delay = float(self.rng.uniform(0, self.seconds_per_token * len(tokens)))
        timer = threading.Timer(delay, self.engine.interrupt)
        timer.start()
        try:
            self.decode(tokens, "last")
            self.done["cancellations that came too late"] += 1
        except InterruptedDecodeError:
            self.done["cancellations"] += 1
            self.went_back(before, {"cancelled": tokens, "position": self.engine.position})
        finally:
            timer.cancel()
            timer.join()

    def mark(self) -> None:
        """Let an engine that cannot rewind remember this position."""
        self.engine.mark()
        self.history.append({"mark": True, "position": self.engine.position})
        self.done["marks"] += 1

    def save(self) -> None:
        """Write the state to one of a few files."""
        path = Path(self.job.folder) / f"state-{self.rng.integers(STATES)}"
        self.engine.save(path)
        self.saved[path] = list(self.history)
        self.done["saves"] += 1

    def restore(self) -> None:
        """Read one of the states back."""
        if not self.saved:
            return
        path = sorted(self.saved)[self.rng.integers(len(self.saved))]
        self.engine.restore(path)
        self.history = list(self.saved[path])
        self.expect(position_of(self.history))
        self.done["restores"] += 1

    def open(self) -> Engine:
        """Load the model within the budget."""
        engine = self.job.load(self.job.budget_bytes)
        plan = engine.plan
        self.openings.append({"slots": plan.slots, "load_seconds": round(engine.load_seconds, 3)})
        self.done["openings"] += 1
        if len(self.openings) == 1:
            print(f"{plan.slots} of {plan.experts} experts fit", file=sys.stderr, flush=True)
        return engine

    def close(self) -> None:
        """Close the engine and note what the process holds without one."""
        self.stats.append(self.engine.stats())
        self.engine.close()
        self.closed.append({"tokens": self.tokens, **self.holdings.now()})

    def reopen(self) -> None:
        """Close and load again: every second time a state is restored into the fresh engine."""
        self.close()
        self.history = []
        self.engine = self.open()
        if len(self.openings) % 2 == 0 and self.saved:
            self.restore()
            self.done["restores into a fresh engine"] += 1

    def prompt(self, least: int) -> list[int]:
        """Return random tokens of up to three chunks, for which there is room."""
        count = int(self.rng.integers(least, 3 * self.job.chunk_tokens + 1))
        self.make_room(count)
        return self.random_tokens(count)

    def random_tokens(self, count: int) -> list[int]:
        return [int(t) for t in self.rng.integers(0, self.engine.tokenizer.n_vocab, count)]

    def make_room(self, count: int) -> None:
        """Rewind if the context has no room for so many tokens."""
        room = self.job.context_tokens - count
        if self.engine.position > room:
            self.truncate(int(self.rng.integers(0, room + 1)))

    def decode(self, tokens: list[int], mode: Logits) -> None:
        position = self.engine.position + len(tokens)
        rows = self.engine.decode(tokens, mode)
        self.expect(position)
        if not np.isfinite(rows).all():
            raise SoakError(f"logits at position {position} are not finite")
        self.history.append({"tokens": tokens, "logits": mode, "sha256": digest(rows)})
        self.tokens += len(tokens)

    def truncate(self, n: int) -> None:
        position = self.engine.truncate(n)
        self.went_back(n, {"truncate": n, "position": position})

    def went_back(self, wanted: int, step: Step) -> None:
        """Note that the engine went back, and see that it went no further than it must."""
        position = step["position"]
        if self.engine.can_rewind:
            self.expect(wanted)
        elif position > wanted:
            raise SoakError(f"went back to {position}, not {wanted}")
        self.expect(position)
        if position < wanted:
            self.done["went back further than asked"] += 1
        if position < wanted or "truncate" in step:
            self.history.append(step)
        if position == 0:
            self.history = []

    def expect(self, position: int) -> None:
        if self.engine.position != position:
            raise SoakError(f"position {self.engine.position}, not {position}")

    def check(self) -> None:
        """Now and then, write down the history: it is replayed afterwards."""
        due = self.checks * self.job.tokens < self.tokens * self.job.checks
        if due and self.history and self.history[-1].get("logits", "none") != "none":
            with (Path(self.job.folder) / "checks.jsonl").open("a") as file:
                file.write(json.dumps(self.history) + "\n")
            self.checks += 1

    def sample(self) -> None:
        """Every few tokens, note what the process holds."""
        before = self.samples[-1]["tokens"] if self.samples else -PROGRESS_TOKENS
        if self.tokens - before < SAMPLE_TOKENS:
            return
        found = {"tokens": self.tokens, **self.holdings.now()}
        self.samples.append(found)
        if self.tokens // PROGRESS_TOKENS > before // PROGRESS_TOKENS:
            said = f"{self.tokens} tokens, {self.checks} checks, {found['rss_bytes'] >> 20} MiB"
            print(said, file=sys.stderr, flush=True)
