"""Every way in which an index of safetensors can lie is refused, in little memory."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from localmoe.errors import ModelNotFoundError
from localmoe.weights import safetensors, safetensors_index
from localmoe.weights.safetensors import read_tensors
from raw_safetensors import ENTRIES, raw, refuse


def index(path: Path, weight_map: object, **more: object) -> Path:
    """Write an index of a file that is there, and others."""
    (path / "s.safetensors").write_bytes(raw(ENTRIES))
    written = path / "model.safetensors.index.json"
    written.write_text(json.dumps({"weight_map": weight_map, **more}))
    return written


GOOD = {"a": "s.safetensors", "b": "s.safetensors"}


def test_the_good_index_passes(tmp_path: Path) -> None:
    assert read_tensors(index(tmp_path, GOOD, metadata={"a": [1.5, {}]})).keys() == {"a", "b"}


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/etc/passwd",
        "/s.safetensors",
        "../s.safetensors",
        "sub/s.safetensors",
        "sub\\s.safetensors",
        "C:s.safetensors",
        "..safetensors",
        ".s.safetensors",
        "s\0.safetensors",
        "s.safetensors\0",
        "s.json",
        "s.safetensors.index.json",
    ],
)
def test_files_that_lie_elsewhere(tmp_path: Path, name: str) -> None:
    refuse(index(tmp_path, {**GOOD, "c": name}), None, "should have the plain name")


@pytest.mark.parametrize("value", [1, None, ["s.safetensors"], {}, "s" * 256, True])
def test_files_that_are_no_names(tmp_path: Path, value: object) -> None:
    refuse(index(tmp_path, {**GOOD, "c": value}), None, "string of at most 255 bytes")


def test_an_index_of_pickles(tmp_path: Path) -> None:
    refuse(index(tmp_path, {"a": "pytorch_model.bin"}), None, "nothing is unpickled")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "should have b'{'"),
        ("[]", "should have b'{'"),
        ("{}", "names none"),
        ('{"weight_map": {}}', "names none"),
        ('{"weight_map": []}', "should have b'{'"),
        ('{"weight_map": {"a": "s.safetensors", "a": "s.safetensors"}}', "'a' twice"),
        ('{"weight_map": {"a": "s.safetensors"}, "weight_map": {}}', "'weight_map' twice"),
        ('{"weight_map": {"a": "s.safetensors"}', "should have b'}'"),
        ('{"metadata": NaN}', "NaN is not allowed"),
        ('{"metadata": ' + "[" * 5000 + "}", "nested too deep"),
        ('{"metadata": [' + "[]," * 30_000 + "[]]}", "at most 65536 bytes"),
        ("{" + "".join(f'"k{i}": 1,' for i in range(65)) + '"k": 1}', "more than 64 entries"),
    ],
)
def test_indexes_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    path = index(tmp_path, GOOD)
    path.write_text(text)
    refuse(path, None, message)


def test_an_index_that_is_not_utf8(tmp_path: Path) -> None:
    refuse(tmp_path / "model.safetensors.index.json", b'{"\xff": 1}', "is not UTF-8")


def test_an_index_larger_than_any(tmp_path: Path) -> None:
    path = index(tmp_path, GOOD)
    os.truncate(path, 100_000_001)
    refuse(path, None, "no index has over 100000000")


def test_missing_files_are_named_at_once(tmp_path: Path) -> None:
    names = {f"t{i}": f"m{i:02}.safetensors" for i in range(12)}
    path = index(tmp_path, {**GOOD, **names})
    message = re.escape("12 of 13 files are missing") + ".*m00.*m07.safetensors[.]"
    refuse(path, None, message, ModelNotFoundError)


def test_a_link_to_nowhere_is_missing(tmp_path: Path) -> None:
    path = index(tmp_path, {**GOOD, "c": "c.safetensors"})
    (tmp_path / "c.safetensors").symlink_to("nowhere")
    refuse(path, None, "1 of 2 files are missing", ModelNotFoundError)


def test_a_file_that_is_a_pipe(tmp_path: Path) -> None:
    path = index(tmp_path, {**GOOD, "c": "c.safetensors"})
    os.mkfifo(tmp_path / "c.safetensors")
    refuse(path, None, "is not a file", ModelNotFoundError)


def test_tensors_that_the_shard_lacks(tmp_path: Path) -> None:
    more = {f"{{c{i}}}": "s.safetensors" for i in range(7)}
    refuse(index(tmp_path, {**GOOD, **more}), None, "should have 7 tensors .*'{c0}'.*'{c4}', ...")


def test_a_name_in_two_shards(tmp_path: Path) -> None:
    (tmp_path / "t.safetensors").write_bytes(raw({**ENTRIES, "c": ENTRIES["b"]} | moved()))
    path = index(tmp_path, {**GOOD, "c": "t.safetensors"})
    refuse(path, None, r"has 2 tensors \('a', 'b'\) that another file .* has as well")


def moved() -> dict[str, Any]:
    """Return the tensor b halved, to make room for one more."""
    return {
        "b": {"dtype": "U8", "shape": [2], "data_offsets": [12, 14]},
        "c": {"dtype": "U8", "shape": [2], "data_offsets": [14, 16]},
    }


def test_a_truncated_file_of_several_is_named(tmp_path: Path) -> None:
    path = index(tmp_path, GOOD)
    os.truncate(tmp_path / "s.safetensors", len(raw(ENTRIES)) - 3)
    refuse(path, None, "s.safetensors is truncated.* 3 bytes are missing")


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        (safetensors_index, "MAX_SHARDS", "more than 1 files"),
        (safetensors_index, "MAX_TENSORS", "more than 1 entries"),
        (safetensors, "MAX_TENSORS", "more than 1 tensors"),
    ],
)
def test_numbers_that_no_model_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, message: str
) -> None:
    monkeypatch.setattr(module, name, 1)
    refuse(
        index(tmp_path, {**GOOD, "c": "t.safetensors"} if "files" in message else GOOD),
        None,
        message,
    )
