"""Keys and values that grow in place are those that transformers' own layer has."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from localmoe.backends.torch.kv_layer import RoomyLayer, held_values

CAPACITY = 16


def states(heads: int, tokens: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    return (
        torch.rand((1, heads, tokens, 4), generator=source),
        torch.rand((1, heads, tokens, 6), generator=source),
    )


@settings(deadline=None)
@given(
    heads=st.integers(1, 3),
    steps=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 6)), min_size=1, max_size=8),
    reload_at=st.integers(0, 8),
)
def test_any_steps_and_cuts_give_the_same(
    heads: int, steps: list[tuple[int, int]], reload_at: int
) -> None:
    """Whether or not there is room, and after what was saved came back without any."""
    source = torch.Generator().manual_seed(heads)
    ours, theirs = RoomyLayer(CAPACITY), DynamicLayer()
    for number, (more, fewer) in enumerate(steps):
        new = states(heads, more, source)
        for found, expected in zip(ours.update(*new), theirs.update(*new), strict=True):
            assert torch.equal(found, expected)
        for layer in (ours, theirs):
            layer.crop(-min(fewer, more))
        if number == reload_at:
            ours.keys, ours.values = ours.keys.contiguous(), ours.values.contiguous()
        assert ours.get_seq_length() == theirs.get_seq_length()
        if ours.get_seq_length():
            assert torch.equal(ours.keys, theirs.keys)


def test_nothing_is_copied_while_there_is_room() -> None:
    source, layer = torch.Generator().manual_seed(1), RoomyLayer(CAPACITY)
    layer.update(*states(2, 3, source))
    places = layer.keys.data_ptr(), layer.values.data_ptr()
    for _ in range(CAPACITY - 3):
        layer.update(*states(2, 1, source))
        assert (layer.keys.data_ptr(), layer.values.data_ptr()) == places
    layer.update(*states(2, 1, source))
    assert layer.keys.data_ptr() != places[0]
    assert layer.get_seq_length() == CAPACITY + 1


def test_a_copy_does_not_change_with_the_layer() -> None:
    source, layer = torch.Generator().manual_seed(2), RoomyLayer(CAPACITY)
    layer.update(*states(2, 3, source))
    kept = copy.deepcopy(layer)
    before = kept.keys.clone()
    layer.crop(-2)
    layer.update(*states(2, 2, source))
    assert torch.equal(kept.keys, before)
    kept.update(*states(2, 5, source))
    assert kept.get_seq_length() == 8


def test_its_room_is_not_saved() -> None:
    layer = RoomyLayer(CAPACITY)
    assert "capacity" not in held_values(layer)
    assert set(held_values(layer)) == set(vars(DynamicLayer()))


@pytest.mark.parametrize("capacity", [1, 3])
def test_more_than_there_was_room_for(capacity: int) -> None:
    source, layer = torch.Generator().manual_seed(3), RoomyLayer(capacity)
    new = states(1, 5, source)
    assert torch.equal(layer.update(*new)[0], new[0])
