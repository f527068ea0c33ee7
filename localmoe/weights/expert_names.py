"""Which weights of a checkpoint belong to routed experts, by their names.

Most checkpoints have a tensor for each expert, others one for all of them, along the first axis.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_MATRICES = {
    **{"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "gate_up_proj": "gate_up"},
    **{"w1": "gate", "w3": "up", "w2": "down", "w13": "gate_up"},
    **{"fc1": "gate_up", "fc2": "down", "input_linear": "gate_up", "output_linear": "down"},
}
"""What a matrix of an expert is, by the words that checkpoints have for it."""
_EACH = re.compile(r"(?P<group>(?:.+\.)?experts)\.(?P<expert>[0-9]{1,6})\.(?P<rest>.+)")
_ALL = re.compile(r"(?P<group>(?:.+\.)?experts)\.(?P<rest>.+)")
_OWN_MODULE = re.compile(
    r"(?P<group>.+\.block_sparse_moe)\.(?P<rest>(?:in|out)put_linear\.weight)"
    r"|(?P<group2>.+\.moe)\.(?P<rest2>(?:gate|up|down)_proj\.weight)"
)
_REST = re.compile(rf"(?P<matrix>{'|'.join(_MATRICES)})(?:[._](?P<kind>weight|bias))?")


class ExpertName(NamedTuple):
    """What the name of a weight says of its place among experts."""

    group: str
    """Name of the module that they are in."""
    expert: int | None
    """None: the weight has that of all experts."""
    matrix: str
    """gate, up, gate_up or down; empty: not known."""
    is_bias: bool


def expert_name(name: str, n_dims: int) -> ExpertName | None:
    """Return what a weight is to routed experts; None: nothing. `n_dims` of its tensor."""
    if each := _EACH.fullmatch(name):
        return _named(each["group"], int(each["expert"]), each["rest"])
    if found := _ALL.fullmatch(name):
        # A norm or a bias of the router belongs to all experts alike.
        return None if n_dims < 2 else _named(found["group"], None, found["rest"])
    own = _OWN_MODULE.fullmatch(name) if n_dims == 3 else None
    if own is None:
        return None
    return _named(own["group"] or own["group2"], None, own["rest"] or own["rest2"])


def layer_place(name: str) -> tuple[str, int] | None:
    """Return the stack of layers that a weight is in, and the number of its layer."""
    words = name.split(".")
    for place, word in enumerate(words):
        if word.isascii() and word.isdecimal() and len(word) <= 6:
            return ".".join(words[:place]), int(word)
    return None


def _named(group: str, expert: int | None, rest: str) -> ExpertName:
    found = _REST.fullmatch(rest)
    if found is None:
        return ExpertName(group, expert, "", False)
    return ExpertName(group, expert, _MATRICES[found["matrix"]], found["kind"] == "bias")
