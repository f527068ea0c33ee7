"""Routers tell whom they chose before anybody asks: reads begin while other modules compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from localmoe.backends.torch.server import ExpertServer
from localmoe.weights.catalog import MoeLayer

_INTEGERS = (torch.int64, torch.int32)


def hook_routers(model: nn.Module, name: str, layer: MoeLayer, server: ExpertServer) -> None:
    """Have every sibling of a module of experts looked at that returns numbers of experts.

    What they return is not changed.
    """
    parent = model.get_submodule(name.rpartition(".")[0])
    experts = model.get_submodule(name)

    def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
        index = _chosen(output)
        if index is not None and not server.tables:  # with tables nothing is read
            ids = [expert for expert in index.reshape(-1).tolist() if expert < layer.n_experts]
            server.begin(layer.layer, ids)

    for child in parent.children():
        if child is not experts:
            child.register_forward_hook(look)


def _chosen(output: Any) -> Tensor | None:
    """Return the numbers of experts in what a router returns, [T, K]; None: there are none."""
    for each in output if isinstance(output, tuple) else (output,):
        if isinstance(each, Tensor) and each.dtype in _INTEGERS and each.dim() == 2:
            return each
    return None
