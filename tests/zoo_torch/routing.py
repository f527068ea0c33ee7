"""Which experts the tokens of a prompt go to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoo_torch.facts import Facts

Choices = dict[str, Tensor]
"""By the path of a module of experts: the ids that its tokens go to, int64 [T, K]."""


def experts_of(model: nn.Module, facts: Facts) -> dict[str, nn.Module]:
    """Return the modules that hold routed experts, by their path."""
    modules = model.named_modules()
    return {path: module for path, module in modules if type(module).__name__ == facts.experts}


@torch.inference_mode()
def routing(model: nn.Module, facts: Facts, tokens: list[int]) -> Choices:
    """Return what the routers say for these tokens as one step."""
    with _said_by_routers(model, facts) as choices:
        model(torch.tensor([tokens]))
    return choices


@torch.inference_mode()
def handed_over(model: nn.Module, facts: Facts, tokens: list[int]) -> Choices:
    """Return the ids that the experts get for these tokens; nothing where they get none."""
    choices: Choices = {}

    def note(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            for value in (*args, *named.values()):
                if isinstance(value, Tensor) and not value.is_floating_point():
                    choices[path] = value

        return hook

    with ExitStack() as stack:
        for path, module in experts_of(model, facts).items():
            handle = module.register_forward_pre_hook(note(path), with_kwargs=True)
            stack.callback(handle.remove)
        model(torch.tensor([tokens]))
    return choices


@contextmanager
def _said_by_routers(model: nn.Module, facts: Facts) -> Iterator[Choices]:
    choices: Choices = {}

    def note(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            choices[path] = _ids(output[facts.router_output])

        return hook

    with ExitStack() as stack:
        for path in experts_of(model, facts):
            router = model.get_submodule(f"{path.rpartition('.')[0]}.{facts.router}")
            stack.callback(router.register_forward_hook(note(path)).remove)
        yield choices


def _ids(said: Tensor) -> Tensor:
    """Return ids as they are, or from scores [T, E] that are zero but for the chosen experts."""
    if not said.is_floating_point():
        return said
    n_chosen = int(said[0].count_nonzero())
    return said.topk(n_chosen, dim=-1).indices
