"""The embedded demonstration model, built on first use."""

from __future__ import annotations

from pathlib import Path

from localmoe.cli.options import cache_dir
from localmoe.cli.progress import progress_bar


def demo_model_path() -> Path:
    """Return its file, building it under a progress bar where it is not there."""
    from localmoe.demo.builder import demo_model

    with progress_bar() as progress:
        return demo_model(cache_dir(), progress)
