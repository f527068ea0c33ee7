"""Opens model files that may be no files at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO

from localmoe.errors import ModelNotFoundError


@contextmanager
def open_model_file(path: str, suffix: str) -> Iterator[tuple[FileIO, int]]:
    """Yield a file, unbuffered, and its bytes; `suffix` says in messages what it should be.

    Raises ModelNotFoundError, also for what the system refuses while it is read.
    """
    if "\0" in path:
        raise ModelNotFoundError(f"{path!r} cannot be the name of a file.")
    try:
        # Before it is opened: that of a pipe would block.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ModelNotFoundError(f"{path} is not a file. Give the path of a {suffix} file.")
        with open(path, "rb", buffering=0) as file:
            yield file, os.fstat(file.fileno()).st_size
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"there is no model file {path}. Check the path.") from error
    except OSError as error:
        raise ModelNotFoundError(
            f"cannot read the model file {path}: {error.strerror}. Check its permissions and the "
            "disk."
        ) from error
