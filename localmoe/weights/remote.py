"""Headers of a model that lies on Hugging Face: kilobytes to megabytes of it, never a weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from localmoe.errors import HubError
from localmoe.settings import Progress
from localmoe.weights.byte_cursor import ByteCursor
from localmoe.weights.checkpoint_files import is_index, is_small
from localmoe.weights.gguf_header import parse_header
from localmoe.weights.hub import Listing
from localmoe.weights.hub_checkpoint import fetch_small
from localmoe.weights.quantized_files import SAFETENSORS, HubFile
from localmoe.weights.remote_file import Allowance, RemoteFile
from localmoe.weights.safetensors_header import SUFFIX, take_header

MAX_HEADER_NBYTES = 256 << 20
"""Of all files together; the largest vocabularies take some megabytes."""
_GGUF_FIRST_NBYTES, _GGUF_WINDOW_NBYTES = 128 << 10, 64 << 10
_SAFETENSORS_FIRST_NBYTES, _SAFETENSORS_WINDOW_NBYTES = 32 << 10, 64
"""Each header says at its start how long it is: the second request is for the rest of it."""
_CONNECTIONS = 8
"""A checkpoint may have hundreds of files, and each is waited for."""

_Write = Callable[[Listing, HubFile, Path, Allowance], None]


def write_stand_ins(listing: Listing, folder: Path, progress: Progress | None = None) -> Path:
    """Write files with the headers of a remote model, each as long as the real one, and empty.

    Returns the first. They take as much room on the disk as their headers, and serve for everything
    that reads headers alone. Of a safetensors checkpoint the small files are there, too. Raises
    HubError, ModelFormatError, UnsupportedModelError.
    """
    files = listing.chosen.files
    write: _Write = _write_gguf
    if listing.chosen.name == SAFETENSORS:
        _write_small(listing, folder)
        files = tuple(file for file in files if file.path.endswith(SUFFIX))
        write = _write_safetensors
    allowance = Allowance(MAX_HEADER_NBYTES)

    def one(file: HubFile) -> None:
        with _kept(file, folder):
            write(listing, file, folder / PurePosixPath(file.path).name, allowance)

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        try:
            for done, _ in enumerate(pool.map(one, files), start=1):
                if progress:
                    progress("reading headers", done, len(files))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return folder / PurePosixPath(listing.chosen.files[0].path).name


@contextmanager
def _kept(file: HubFile, folder: Path) -> Iterator[None]:
    """Say what it is where a stand-in cannot be written."""
    try:
        yield
    except OSError as error:
        raise HubError(
            f"cannot keep the header of {file.path}, a file of {file.nbytes} bytes, in "
            f"{folder}: {error.strerror}"
        ) from error


def _write_gguf(listing: Listing, file: HubFile, path: Path, allowance: Allowance) -> None:
    with path.open("x+b") as local:
        local.truncate(file.nbytes)
        remote = RemoteFile(listing, file, local.fileno(), allowance, _GGUF_FIRST_NBYTES)
        where = f"{listing.repository}/{file.path}"
        header = parse_header(remote, where, file.nbytes, _GGUF_WINDOW_NBYTES)
        remote.fetch(header.data_offset)


def _write_safetensors(listing: Listing, file: HubFile, path: Path, allowance: Allowance) -> None:
    with path.open("x+b") as local:
        local.truncate(file.nbytes)
        remote = RemoteFile(listing, file, local.fileno(), allowance, _SAFETENSORS_FIRST_NBYTES)
        where = f"{listing.repository}/{file.path}"
        take_header(ByteCursor(remote, where, file.nbytes, _SAFETENSORS_WINDOW_NBYTES))


def _write_small(listing: Listing, folder: Path) -> None:
    """Fetch what says how a checkpoint is to be used."""
    for file in listing.chosen.files:
        path = folder / file.path
        with _kept(file, folder):
            if is_index(file):
                path.write_bytes(listing.index)
            elif is_small(file):
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(fetch_small(listing, file))
