"""Opening a model: its checks, its files, and another number of active experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from localmoe.backends.llama.source import open_source
from localmoe.errors import ModelNotFoundError, SettingsError
from localmoe.weights import shards

ZooModel = Callable[[str], Path]


def test_another_number_of_experts_is_that_of_every_layer(zoo_model: ZooModel) -> None:
    source = open_source(zoo_model("qwen3moe"), 1)
    source.close()
    assert {layer.n_experts_used for layer in source.catalog.layers} == {1}
    assert source.override == ("qwen3moe.expert_used_count", 1)


@pytest.mark.parametrize(
    ("name", "used", "message"),
    [
        ("qwen3moe", 1000, "a layer has only"),
        ("nemotron_h_moe-puzzle", 1, "has a number for each layer"),
        ("qwen3", 1, "is dense"),
    ],
)
def test_numbers_of_experts_that_cannot_be_had(
    zoo_model: ZooModel, name: str, used: int, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        open_source(zoo_model(name), used)


def test_a_file_that_went_away_after_its_header_was_read(
    zoo_model: ZooModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(zoo_model("qwen3moe").read_bytes())
    headers = shards.read_shards(path)
    path.unlink()
    monkeypatch.setattr("localmoe.backends.llama.source.read_shards", lambda _: headers)
    with pytest.raises(ModelNotFoundError, match="cannot read .* again: No such file"):
        open_source(path, None)
