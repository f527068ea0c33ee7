"""Regroup the neurons of each feed-forward layer into a shared expert and routed experts.

A gated feed-forward layer is a sum over its neurons, so any grouping is exact while all groups are
active. The grouping decides how little is lost when only K of E are: neurons that are active
together share a group, neurons that are active for most tokens go to the shared expert, and the
router predicts from the layer's input which groups will matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from demo_recipe.dense import FF, LAYERS, D, Weights, forward, neurons
from demo_recipe.sample import Record

CALIBRATION_TOKENS = 16384
CLUSTER_TOKENS = 3072
STRONGEST = 384  # neurons that count as active in a token
ROUNDS = 20  # of balanced k-means


@dataclass(frozen=True)
class Shape:
    """Neurons of the shared expert, number of routed experts, active ones."""

    shared: int = 768
    experts: int = 24
    used: int = 6

    @property
    def width(self) -> int:
        """Neurons of one routed expert."""
        return (FF - self.shared) // self.experts


@dataclass(frozen=True)
class Split:
    """`order` int64 [F]: old number of each new neuron; `router` float32 [E, D]."""

    order: torch.Tensor
    router: torch.Tensor


def calibration(w: Weights, chats: Record) -> list[torch.Tensor]:
    """Return the feed-forward inputs of every layer, each [CALIBRATION_TOKENS, D], shuffled."""
    inputs: list[list[torch.Tensor]] = [[] for _ in range(LAYERS)]
    seen = 0
    for rows in torch.arange(len(chats["ids"])).split(16):
        if seen >= CALIBRATION_TOKENS:
            break
        length = chats["length"][rows]
        ids = chats["ids"][rows, : int(length.max())].long().to(w["output_norm.weight"].device)
        keep = (torch.arange(ids.shape[1])[None] < length[:, None]).to(ids.device)
        forward(w, ids, see=lambda i, _, n, keep=keep: inputs[i].append(n[keep]))
        seen += int(length.sum())
    shuffle = torch.randperm(seen, generator=torch.Generator().manual_seed(0))[:CALIBRATION_TOKENS]
    return [torch.cat(parts)[shuffle.to(parts[0].device)] for parts in inputs]


def split_layer(w: Weights, layer: int, x: torch.Tensor, shape: Shape) -> Split:
    """Group one layer's neurons and fit its router on inputs x [N, D]."""
    down = w[f"blk.{layer}.ffn_down.weight"]
    activity = neurons(w, layer, x)
    strength = activity.abs() * down.norm(dim=0)
    active = strength >= strength.topk(STRONGEST, 1).values[:, -1:]
    often = active.float().mean(0).argsort(descending=True)
    shared, routed = often[: shape.shared].sort().values, often[shape.shared :].sort().values
    profile = strength[:CLUSTER_TOKENS]
    profile = (profile / profile.pow(2).mean(1, keepdim=True).sqrt())[:, routed].T
    group = _cluster(F.normalize(profile, dim=1).cpu(), shape).to(x.device)
    order = torch.cat([shared, *(routed[group == e] for e in range(shape.experts))])
    return Split(order, _fit_router(x, _importance(activity, down, order, shape)))


def _importance(
    activity: torch.Tensor, down: torch.Tensor, order: torch.Tensor, shape: Shape
) -> torch.Tensor:
    """Return the log-norm of every routed expert's output, centred per token. [N, E]."""
    columns = order[shape.shared :].view(shape.experts, shape.width)
    norms = [(activity[:, c] @ down[:, c].T).norm(dim=1) for c in columns]
    log = torch.log(torch.stack(norms, 1) + 1e-6)
    return log - log.mean(1, keepdim=True)


def _fit_router(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Ridge regression of target [N, E] on x [N, D]. -> [E, D]."""
    gram = x.T @ x
    gram += 1e-2 * gram.diagonal().mean() * torch.eye(D, device=x.device)
    return torch.linalg.solve(gram, x.T @ target).T.contiguous()


def _cluster(points: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Balanced k-means on the unit sphere. points [R, N] -> group of each, int64 [R]."""
    centres = _spread_out(points, shape.experts)
    best, best_score = torch.zeros(len(points), dtype=torch.int64), -1.0
    for _ in range(ROUNDS):
        similarity = (points @ centres.T).numpy()
        group = _balance(similarity, shape.width)
        score = float(similarity[np.arange(len(group)), group].sum())
        group_of = torch.from_numpy(group)
        if score > best_score:
            best, best_score = group_of, score
        sums = torch.stack([points[group_of == e].sum(0) for e in range(shape.experts)])
        centres = F.normalize(sums, dim=1)
    return best


def _spread_out(points: torch.Tensor, n: int) -> torch.Tensor:
    """Choose n starting centres, each likely to be far from those before it (k-means++)."""
    random = torch.Generator().manual_seed(0)
    chosen = [int(torch.randint(len(points), (1,), generator=random))]
    distance = 1 - points @ points[chosen[0]]
    while len(chosen) < n:
        weight = distance.clamp_min(1e-6) ** 2
        chosen.append(int(torch.multinomial(weight, 1, generator=random)))
        distance = torch.minimum(distance, 1 - points @ points[chosen[-1]])
    return points[chosen]


def _balance(similarity: npt.NDArray[np.float32], room: int) -> npt.NDArray[np.int64]:
    """Give every row a column, `room` rows to each: the most decided first, then swaps."""
    rows, groups = similarity.shape
    group, free = np.full(rows, -1), np.full(groups, room)
    two = np.sort(similarity, axis=1)[:, -2:]
    for row in np.argsort(two[:, 0] - two[:, 1]):
        choice = int(np.argmax(np.where(free > 0, similarity[row], -np.inf)))
        group[row] = choice
        free[choice] -= 1
    for _ in range(3 * rows):
        if not _swap_once(similarity, group):
            break
    return group


def _swap_once(similarity: npt.NDArray[np.float32], group: npt.NDArray[np.int64]) -> bool:
    """Exchange the two rows whose exchange helps most; False when none does."""
    groups = similarity.shape[1]
    gain = similarity - similarity[np.arange(len(group)), group][:, None]
    members = [np.flatnonzero(group == g) for g in range(groups)]
    best = np.stack([gain[m].max(0) for m in members])  # [from, to]
    both = best + best.T
    np.fill_diagonal(both, 0)
    if both.max() <= 1e-6:
        return False
    a, b = np.unravel_index(int(both.argmax()), both.shape)
    one, other = members[a][gain[members[a], b].argmax()], members[b][gain[members[b], a].argmax()]
    group[one], group[other] = b, a
    return True
