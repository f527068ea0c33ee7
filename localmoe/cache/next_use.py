"""Evicts the expert whose next use is farthest away, as far as its past can tell."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from localmoe.cache.policies import Uses
from localmoe.weights.catalog import ExpertKey, MoeLayer

_DECAY = 0.5 ** (1 / 64)
"""Of how often an expert is used: a use counts half after 64 tokens."""
_LEARNED_TOKENS = 32
"""Of a prefill chunk, so many of its last tokens are looked at one by one."""
_HELD_PER_LISTED = 32
"""Of so many that are held, one is listed to go: the list serves the misses of a few layers."""
_NEVER = -(1 << 20)
_N_RATES = 21  # two for each halving of the rate, down to a thousandth
_RATE_OF_ONE = 254  # 1.0 as float32, shifted by _RATE_SHIFT
_RATE_SHIFT = 22
_EXACT_AGES = 8  # then two for each doubling
_N_AGES = 21
_MAX_AGE = 1 << 10
_FADE = 0.9 ** (1 / 4096)
"""Of what was learned, for each layer that was routed."""
_PRIOR_WEIGHT = 2.0

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def _age_rows() -> Ints:
    """Return the row of the table for each age in tokens, up to _MAX_AGE."""
    ages = np.arange(_MAX_AGE + 1)
    far = _EXACT_AGES + 2 * np.log2(np.maximum(ages, 1) / _EXACT_AGES)
    rows = np.where(ages < _EXACT_AGES, ages, far.astype(np.int64))
    table: Ints = np.minimum(rows, _N_AGES - 1).astype(np.int64) * _N_RATES
    return table


def _columns(rates: Floats) -> Ints:
    """Return the column of the table for each rate: two for each halving, from the float's bits."""
    columns = (rates.view(np.int32) >> _RATE_SHIFT) - (_RATE_OF_ONE - _N_RATES + 1)
    found: Ints = np.maximum(columns, 0).astype(np.int64)
    return found


_AGE_ROWS = _age_rows()


class Chances:
    """How likely an expert is used when its layer comes by, by its age and its rate; learned.

    A cell is a pair of an age (tokens since the last use) and a rate (share of the tokens).
    """

    def __init__(self) -> None:
        ages = np.array([int(np.argmax(row == _AGE_ROWS)) for row in np.unique(_AGE_ROWS)])
        rates = 2.0 ** ((np.arange(_N_RATES) - _N_RATES + 1) / 2)
        guess = rates / 2 + 0.225 * 2.0 ** (-ages[:, None] / 4) + 0.001
        self._prior = _PRIOR_WEIGHT * np.minimum(guess, 0.9).ravel()
        self._tried = np.zeros(_N_AGES * _N_RATES)
        self._used = np.zeros_like(self._tried)
        self.waits: Floats = np.zeros(0, np.float32)
        """By cell: after how many chances to be used an expert is used, on average, less one."""
        self.refresh(0)

    def learn(self, cells: Ints, used: Ints) -> None:
        """Note that experts in `cells` might have been used, and those in cells `used` were."""
        self._tried += np.bincount(cells, minlength=len(self._tried))
        self._used += np.bincount(used, minlength=len(self._used))

    def refresh(self, n_steps: int) -> None:
        """Let what was learned age by so many steps, and renew `waits`."""
        fade = _FADE**n_steps
        self._tried *= fade
        self._used *= fade
        chances = (self._used + self._prior) / (self._tried + _PRIOR_WEIGHT)
        self.waits = (1 / np.clip(chances, 1e-6, 1) - 1).astype(np.float32)


class NextUse:
    """Expects each expert after (1 / chance - 1) tokens and the way from here to its layer.

    The chance is learned in this very run, from all experts of the class, held or not: so it fits
    models whose experts come in bursts, those with a few busy ones, and those that are random.
    """

    keeps_order = True

    def __init__(self, layers: Sequence[MoeLayer]) -> None:
        n_layers, width = len(layers), max(layer.n_experts for layer in layers)
        self._rows = {layer.layer: row for row, layer in enumerate(layers)}
        self._used = [max(1, layer.n_experts_used) for layer in layers]
        self._keys = [[ExpertKey(m.layer, e) for e in range(m.n_experts)] for m in layers]
        self._tokens = np.zeros(n_layers, np.int64)  # that each layer has seen
        self._last = np.full((n_layers, width), _NEVER, np.int64)
        self._counts = np.zeros((n_layers, width))
        self._uses = np.zeros((n_layers, width), np.float32)  # decayed
        self._weight = np.zeros(n_layers)  # of all tokens, decayed alike
        self._cells = np.zeros((n_layers, width), np.int64)
        self._held = np.zeros((n_layers, width), bool)
        self._chances = Chances()
        self._steps = 0
        self._real = np.array([[e < len(keys) for e in range(width)] for keys in self._keys])
        self._postponed: dict[int, Sequence[int]] = {}
        self._n_held = 0
        self._listed: list[ExpertKey] = []  # held experts that are expected last
        ways = (np.arange(n_layers) - np.arange(n_layers)[:, None] - 1) % n_layers + 1
        self._ways = (ways / n_layers).astype(np.float32)  # [from, to], in passes over all layers
        self._here = n_layers - 1
        self._waits = np.zeros((n_layers, width), np.float32)
        self._foresee(np.arange(n_layers))

    def demand(self, layer: int, ids: Sequence[int]) -> None:
        """Learn from what a layer routed to; a prefill chunk counts as its tokens would."""
        row = self._rows[layer]
        self._here = row
        if len(ids) == self._used[row]:
            self._postpone(row, ids)
            return
        self._learn()
        tokens, rest = divmod(len(ids), self._used[row])
        table = np.array(ids, np.int64).reshape(tokens, -1) if tokens and not rest else None
        if table is None:  # not one token's experts, or several tokens' with some left out
            table = np.array(sorted(set(ids)), np.int64)[None]
        if len(table) > _LEARNED_TOKENS:
            self._skim(row, table[:-_LEARNED_TOKENS])
            table = table[-_LEARNED_TOKENS:]
        for experts in table:
            self._step(np.array([row]), [experts])

    def insert(self, key: ExpertKey) -> None:
        """Hold an expert."""
        row = self._rows[key.layer]
        self._n_held += not self._held[row, key.expert]
        self._held[row, key.expert] = True

    def remove(self, key: ExpertKey) -> None:
        """Hold an expert no longer."""
        row = self._rows[key.layer]
        if not self._held[row, key.expert]:
            raise KeyError(key)
        self._held[row, key.expert] = False
        self._n_held -= 1

    def victim(self, pinned: Container[ExpertKey]) -> ExpertKey | None:
        """Return the expert that is expected last and not pinned."""
        for count in (self._list_length(), self._n_held, 0):  # few, then all if those are pinned
            while self._listed:
                key = self._listed[-1]
                if key not in pinned and self._may_go(key):
                    return key
                self._listed.pop()
            self._learn()
            self._list(count)
        return None

    def candidates(self, count: int) -> list[ExpertKey]:
        """Return the experts that are expected last, the very last one at the front."""
        self._learn()
        self._list(count)
        return self._listed[::-1]

    def settle(self) -> None:
        """Learn from what was demanded since the last time, and see what may go next."""
        self._learn()
        self._list(self._list_length())

    def _list_length(self) -> int:
        """Return how many victims are chosen at once: few of those that are held."""
        return max(1, self._n_held // _HELD_PER_LISTED)

    def _may_go(self, key: ExpertKey) -> bool:
        """Whether an expert is held still, and was not demanded since it was listed."""
        row = self._rows[key.layer]
        return bool(self._held[row, key.expert]) and key.expert not in self._postponed.get(row, ())

    def _list(self, count: int) -> None:
        """List those of the held experts that are expected last; the last one at the end."""
        expected = np.where(self._held, self._waits + self._ways[self._here][:, None], -np.inf)
        flat, count = expected.ravel(), min(count, self._n_held)
        some = np.argpartition(-flat, count - 1)[:count] if count else np.zeros(0, np.int64)
        width = expected.shape[1]
        in_order = some[np.lexsort((-some, flat[some]))].tolist()
        self._listed = [self._keys[at // width][at % width] for at in in_order]

    def _learn(self) -> None:
        """Learn from what was put off."""
        postponed, self._postponed = self._postponed, {}
        self._listed.clear()
        by_length: dict[int, list[int]] = {}
        for row, experts in postponed.items():
            by_length.setdefault(len(experts), []).append(row)
        for rows in by_length.values():
            self._step(np.array(rows), [postponed[row] for row in rows])

    def uses(self) -> Mapping[int, Uses]:
        """Return what each layer's experts were used."""
        self._learn()
        return {
            layer: Uses(float(self._tokens[row]), self._counts[row, : len(self._keys[row])].copy())
            for layer, row in self._rows.items()
        }

    def _postpone(self, row: int, experts: Sequence[int]) -> None:
        """Learn from a layer's token later, together with the other layers': one by one is slow."""
        if row in self._postponed:
            self._learn()
        self._postponed[row] = experts

    def _step(self, rows: Ints, ids: Sequence[Sequence[int] | Ints]) -> None:
        """Learn from one token, in some layers that routed it to equally many experts."""
        each, experts = rows[:, None], np.array(ids, np.int64)
        self._chances.learn(self._cells[rows][self._real[rows]], self._cells[each, experts].ravel())
        self._counts[each, experts] += 1
        self._uses[rows] *= _DECAY
        self._uses[each, experts] += 1
        self._weight[rows] = self._weight[rows] * _DECAY + 1
        self._last[each, experts] = self._tokens[each]
        self._tokens[rows] += 1
        self._foresee(rows)
        self._steps += len(rows)
        if self._steps >= len(self._keys):
            self._chances.refresh(self._steps)
            self._steps = 0

    def _skim(self, row: int, table: Ints) -> None:
        """Remember tokens without learning from each."""
        n, used = table.shape
        self._counts[row] += np.bincount(table.ravel(), minlength=self._counts.shape[1])
        ages = np.repeat(np.arange(n)[::-1], used)
        self._uses[row] *= _DECAY**n
        self._uses[row] += np.bincount(
            table.ravel(), weights=_DECAY**ages, minlength=self._uses.shape[1]
        ).astype(np.float32)
        self._weight[row] = self._weight[row] * _DECAY**n + (1 - _DECAY**n) / (1 - _DECAY)
        self._last[row, table.ravel()] = self._tokens[row] + np.repeat(np.arange(n), used)
        self._tokens[row] += n

    def _foresee(self, rows: Ints) -> None:
        """Find the cell in which each expert of some layers will be at its next chance."""
        ages = np.minimum(self._tokens[rows, None] - self._last[rows], _MAX_AGE)
        rates = self._uses[rows] / np.maximum(self._weight[rows], 1).astype(np.float32)[:, None]
        self._cells[rows] = _AGE_ROWS[ages] + _columns(rates)
        self._waits[rows] = self._chances.waits[self._cells[rows]]
