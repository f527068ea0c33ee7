"""Distil: train corrections, routers, scales and norms towards the dense model's predictions."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from demo_recipe.dense import Ffn, Weights, dense_ffn, forward
from demo_recipe.sample import HIDDEN_AT, Record
from demo_recipe.split import Shape
from demo_recipe.student import expert_ffn

Say = Callable[[str], None]


@dataclass(frozen=True)
class Schedule:
    """Steps, tokens in each, learning rates, weight of the hidden-state error.

    Neither the rate nor the average depends on the number of steps, so a run that was stopped, or
    that should go on for longer, continues where it was.
    """

    steps: int
    tokens_per_step: int = 768
    rate: float = 5e-4
    norm_rate: float = 5e-4
    warm_up: int = 10
    half_rate: int = 300
    hidden_weight: float = 1.0
    seed: int = 1
    save_every: int = 10

    def factor(self, step: int) -> float:
        """Return the fraction of the learning rate: linear warm-up, then 1/sqrt."""
        return min((step + 1) / self.warm_up, (1 + 3 * step / self.half_rate) ** -0.5)

    def memory(self, step: int) -> float:
        """Return how much of the average stays: it spans the last third, at most 100 steps."""
        return 1 - 1 / max(1.0, min(100.0, step / 3))


@dataclass(frozen=True)
class Batch:
    """Sequences of similar length and the teacher's view of them.

    `ids` int64 [B, T]; `answer` bool [B, T]: positions that predict an answer token; `valid` bool
    [B, T]: positions that the teacher has seen; `best` and `logp` [N, 48] for the N true positions
    of `answer`; `hidden` [B, T, H, D].
    """

    ids: torch.Tensor
    answer: torch.Tensor
    valid: torch.Tensor
    best: torch.Tensor
    logp: torch.Tensor
    hidden: torch.Tensor


def batch_of(chats: Record, rows: torch.Tensor, device: torch.device) -> Batch:
    """Cut these rows out of the record, padded to the longest of them."""
    start, length = chats["start"][rows, None], chats["length"][rows, None]
    longest = int(length.max())
    at = torch.arange(longest)[None]
    answer = (at >= start - 1) & (at < length - 1)
    return Batch(
        ids=chats["ids"][rows, :longest].long().to(device),
        answer=answer.to(device),
        valid=(at < length - 1).to(device),
        best=chats["best"][rows, :longest][answer].long().to(device),
        logp=chats["logp"][rows, :longest][answer].float().to(device),
        hidden=chats["hidden"][rows, :longest].to(device),
    )


def groups_of_rows(chats: Record, tokens: int) -> list[torch.Tensor]:
    """Return groups of rows of similar length, each about `tokens` when padded."""
    groups: list[list[int]] = [[]]
    for row in chats["length"].argsort(stable=True).tolist():
        if (len(groups[-1]) + 1) * int(chats["length"][row]) > tokens:
            groups.append([])
        groups[-1].append(row)
    return [torch.tensor(rows) for rows in groups if rows]


def divergence(logits: torch.Tensor, best: torch.Tensor, logp: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) over the teacher's best tokens and the remainder, in nats. -> [N]."""
    mine = logits.gather(1, best) - torch.logsumexp(logits, -1, keepdim=True)
    p = logp.exp()
    rest = (1 - p.sum(1)).clamp_min(1e-5)
    my_rest = (1 - mine.exp().sum(1)).clamp_min(1e-5)
    return (p * (logp - mine)).sum(1) + rest * (rest.log() - my_rest.log())


def losses(w: Weights, ffn: Ffn, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean KL per answered token and mean relative squared error of the residuals."""
    seen: list[torch.Tensor] = []
    x = forward(w, batch.ids, ffn, see=lambda i, r, _: seen.append(r) if i in HIDDEN_AT else None)
    logits = F.linear(x[batch.answer], w["token_embd.weight"])
    kl = divergence(logits, batch.best, batch.logp).mean()
    error = x.new_zeros(())
    for number, mine in enumerate(seen):
        target = batch.hidden[:, :, number][batch.valid].float()
        gap = (mine[batch.valid] - target).pow(2).sum(-1) / target.pow(2).sum(-1)
        error = error + gap.mean() / len(seen)
    return kl, error


def trained_names(w: Weights) -> tuple[list[str], list[str]]:
    """Return the names that are trained: corrections and routers; norms and scales."""
    first = [n for n in w if n.endswith((".a", ".b", "router"))]
    return first, [n for n in w if n.endswith(("norm.weight", "neuron_scale"))]


class Tuning:
    """A student in training: weights, their running average, the optimizer and the step."""

    def __init__(self, w: Weights, schedule: Schedule) -> None:
        fast, slow = trained_names(w)
        self.names, self.schedule, self.step = fast + slow, schedule, 0
        self.w = {n: t.clone().requires_grad_(n in {*self.names}) for n, t in w.items()}
        self.average = {n: w[n].clone() for n in self.names}
        groups = [
            {"params": [self.w[n] for n in fast], "peak": schedule.rate},
            {"params": [self.w[n] for n in slow], "peak": schedule.norm_rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), weight_decay=0.0)

    def learn(self, ffn: Ffn, batch: Batch) -> tuple[float, float]:
        """Take one step; return KL and hidden-state error before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self.schedule.factor(self.step)
        kl, error = losses(self.w, ffn, batch)
        self.optimizer.zero_grad(set_to_none=True)
        (kl + self.schedule.hidden_weight * error).backward()
        torch.nn.utils.clip_grad_norm_([self.w[n] for n in self.names], 1.0)
        self.optimizer.step()
        for name, mean in self.average.items():
            mean.lerp_(self.w[name].detach(), 1 - self.schedule.memory(self.step))
        self.step += 1
        return kl.item(), error.item()

    def save(self, path: Path) -> None:
        """Write all that is needed to go on."""
        now = {n: self.w[n].detach() for n in self.names}
        state = {"step": self.step, "now": now, "average": self.average}
        part = path.with_suffix(".part")
        torch.save(state | {"optimizer": self.optimizer.state_dict()}, part)
        part.replace(path)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        state = torch.load(path, weights_only=True)
        self.step, self.average = state["step"], state["average"]
        with torch.no_grad():
            for name, value in state["now"].items():
                self.w[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])


def tune(
    w: Weights, chats: Record, shape: Shape, schedule: Schedule, path: Path, say: Say
) -> Weights:
    """Return w with trained entries, averaged over steps; the state of training is kept in path."""
    tuning, ffn, log = Tuning(w, schedule), expert_ffn(shape), _Log(schedule, say)
    if path.exists():
        tuning.load(path)
    order = _shuffled(chats, schedule)
    for rows in itertools.islice(order, tuning.step, schedule.steps):
        log.add(tuning.step, *tuning.learn(ffn, batch_of(chats, rows, device_of(w))))
        if tuning.step % schedule.save_every == 0:
            tuning.save(path)
    return w | tuning.average


def device_of(w: Weights) -> torch.device:
    """Return where the weights are."""
    return w["output_norm.weight"].device


def _shuffled(chats: Record, schedule: Schedule) -> Iterator[torch.Tensor]:
    """Yield groups of rows without end, every group once before any comes again."""
    random = np.random.default_rng(schedule.seed)
    groups = groups_of_rows(chats, schedule.tokens_per_step)
    while True:
        for number in random.permutation(len(groups)).tolist():
            yield groups[number]


class _Log:
    """Says how training goes, every ten steps."""

    def __init__(self, schedule: Schedule, say: Say) -> None:
        self._schedule, self._say, self._began = schedule, say, time.monotonic()
        self._recent: list[tuple[float, float]] = []

    def add(self, step: int, kl: float, error: float) -> None:
        self._recent = [*self._recent, (kl, error)][-20:]
        if step % 10 == 9:
            mean_kl, mean_error = np.mean(self._recent, axis=0)
            seconds = time.monotonic() - self._began
            self._say(
                f"step {step + 1}/{self._schedule.steps}: KL {mean_kl:.4f}, "
                f"hidden {mean_error:.4f}, {seconds:.0f} s"
            )


@torch.no_grad()
def judge(w: Weights, chats: Record, shape: Shape | None, rows: int) -> tuple[float, float]:
    """Return KL and perplexity over the answered tokens of the first rows; None: the dense model.

    Perplexity is of the sampled answers.
    """
    ffn = dense_ffn if shape is None else expert_ffn(shape)
    device = device_of(w)
    kls, losses_ = [], []
    for group in torch.arange(rows).split(8):
        batch = batch_of(chats, group, device)
        logits = F.linear(forward(w, batch.ids, ffn)[batch.answer], w["token_embd.weight"])
        kls.append(divergence(logits, batch.best, batch.logp))
        target = batch.ids.roll(-1, 1)[batch.answer]
        losses_.append(F.cross_entropy(logits, target, reduction="none"))
    return float(torch.cat(kls).mean()), float(torch.cat(losses_).mean().exp())
