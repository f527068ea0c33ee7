"""A note beside a repository in the cache: what a pull wants, and which files were compared.

The hub's library knows of whole files alone. From the note `localmoe list` tells what is not
complete, `remove` finds what belongs to it, and what was compared once is not read again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from localmoe.errors import HubError
from localmoe.replacing import replaced_file
from localmoe.weights.digests import digest_of
from localmoe.weights.quantized_files import HubFile, check_files

_FOLDER = "localmoe"
PARTIAL = ".localmoe-partial"
"""Behind the name of a blob that is not complete."""


@dataclass(frozen=True)
class PullNote:
    """One quantization of a repository, as it was when it was pulled."""

    repository: str
    quantization: str
    commit: str
    files: tuple[HubFile, ...]
    compared: tuple[str, ...] = ()
    """Digests of those files that had the right content."""

    @property
    def name(self) -> str:
        """OWNER/REPO:QUANT."""
        return f"{self.repository}:{self.quantization}"

    def with_compared(self, file: HubFile) -> PullNote:
        """Return the note with one file more whose content is right."""
        return replace(self, compared=tuple(dict.fromkeys((*self.compared, file.digest))))

    def write(self, repository_folder: Path) -> None:
        """Keep the note. Raises OSError."""
        path = _path(repository_folder, self.quantization)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(path) as file:
            file.write(json.dumps(asdict(self)).encode())

    def remove(self, repository_folder: Path) -> None:
        """Forget it. Raises OSError."""
        path = _path(repository_folder, self.quantization)
        path.unlink(missing_ok=True)
        if path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()


def read_notes(repository_folder: Path) -> Iterator[PullNote]:
    """Yield the notes of a repository's folder. Raises HubError for one that is damaged."""
    for path in sorted((repository_folder / _FOLDER).glob("*.json")):
        try:
            values = json.loads(path.read_bytes())
            files = tuple(
                HubFile(str(f["path"]), int(f["nbytes"]), str(f["digest"])) for f in values["files"]
            )
            check_files(str(values["repository"]), files)
            if not all(digest_of(file).isalnum() for file in files):
                raise ValueError("a digest is none")
            yield PullNote(
                str(values["repository"]),
                str(values["quantization"]),
                str(values["commit"]),
                files,
                tuple(map(str, values["compared"])),
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise HubError(f"{path} is damaged ({error}): remove it, and pull again") from error


def find_note(repository_folder: Path, quantization: str, commit: str) -> PullNote | None:
    """Return the note of a quantization at this commit, if there is one."""
    for note in read_notes(repository_folder):
        if (note.quantization, note.commit) == (quantization, commit):
            return note
    return None


def _path(repository_folder: Path, quantization: str) -> Path:
    return repository_folder / _FOLDER / f"{quantization}.json"
