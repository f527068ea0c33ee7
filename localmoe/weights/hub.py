"""What Hugging Face says of a repository, and every way in which it may not say it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from localmoe.errors import HubError, ModelFormatError
from localmoe.weights.checkpoint_files import checkpoint, indexed, is_index
from localmoe.weights.digests import digest_of, hash_for
from localmoe.weights.hub_names import HubName
from localmoe.weights.quantized_files import HubFile, Quantized, check_files, choose, quantizations
from localmoe.weights.safetensors_index import check_index_nbytes, parse_index

_TIMEOUT_SECONDS = 30.0
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True)
class Listing:
    """A repository at one commit, and the model in it that is meant."""

    repository: str
    commit: str
    chosen: Quantized
    index: bytes = field(default=b"", repr=False)
    """Of a safetensors checkpoint in several files: which file has which tensor."""


def look_up(name: HubName) -> Listing:
    """Ask the hub for a repository's files, and choose those of the quantization.

    Raises HubError.
    """
    from huggingface_hub import HfApi

    try:
        with hub_errors(name.repository):
            info = HfApi().model_info(name.repository, files_metadata=True)
        files = [_file(sibling) for sibling in info.siblings or ()]
        commit = info.sha
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise ValueError(f"{commit!r} is no commit")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise HubError(
            f"the hub's answer on {name.repository} cannot be understood ({error}). Check "
            "HF_ENDPOINT and any proxy, then try again"
        ) from error
    check_files(name.repository, files)
    found = quantizations(files)
    if whole := checkpoint(files):
        found[whole.name] = whole
    chosen = choose(name.repository, found, name.quantization)
    listing = Listing(name.repository, commit, chosen)
    return _indexed(listing, files) if is_index(chosen.files[0]) else listing


def _indexed(listing: Listing, files: list[HubFile]) -> Listing:
    """Fetch the index of a checkpoint, and keep to the files that it names. Raises HubError."""
    first = listing.chosen.files[0]
    where = f"{listing.repository}/{first.path}"
    try:
        check_index_nbytes(where, first.nbytes)
        index = fetch_whole(listing, first)
        names = list(parse_index(index, where))
    except ModelFormatError as error:
        raise HubError(str(error)) from error
    chosen = indexed(listing.repository, listing.chosen, files, names)
    return replace(listing, chosen=chosen, index=index)


def fetch_whole(listing: Listing, file: HubFile) -> bytes:
    """Return the content of a small file, compared with its checksum. Raises HubError.

    The caller has looked at how long it is said to be.
    """
    content, hashed = bytearray(), hash_for(file)
    if file.nbytes:
        with open_range(listing, file.path, 0, file.nbytes) as response:
            for piece in response.iter_bytes():
                content += piece
                if len(content) > file.nbytes:
                    break
    hashed.update(content)
    if hashed.hexdigest() != digest_of(file):
        raise HubError(
            f"{file.path} of {listing.repository} arrived with other content than the hub says it "
            "has. Try again"
        )
    return bytes(content)


def _file(sibling: Any) -> HubFile:
    """Check one entry of the listing. Raises ValueError, TypeError, KeyError, AttributeError."""
    lfs = sibling.lfs
    digest, nbytes = (lfs.sha256, lfs.size) if lfs else (sibling.blob_id, sibling.size)
    length = 64 if lfs else 40
    if not isinstance(digest, str) or not re.fullmatch(rf"[0-9a-f]{{{length}}}", digest):
        raise ValueError(f"{sibling.rfilename!r} has no checksum")
    if isinstance(nbytes, bool) or not isinstance(nbytes, int):
        raise TypeError(f"{sibling.rfilename!r} has no length")
    return HubFile(str(sibling.rfilename), nbytes, f"{'sha256' if lfs else 'blob'}:{digest}")


@contextmanager
def open_range(listing: Listing, path: str, offset: int, nbytes: int) -> Iterator[Any]:
    """Ask for a run of a file's bytes; yield the response, which may hold more. Raises HubError."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    url = hf_hub_url(listing.repository, path, revision=listing.commit)
    headers = {
        **build_hf_headers(),
        "Range": f"bytes={offset}-{offset + nbytes - 1}",
        "Accept-Encoding": "identity",
    }
    with (
        hub_errors(f"{listing.repository}/{path}"),
        get_session().stream(
            "GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT_SECONDS
        ) as response,
    ):
        hf_raise_for_status(response)
        yield response


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn what the hub's library raises into one clear message each. Raises HubError."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(
            f"{what} is gated: accept its terms on its page at huggingface.co, then {LOGIN}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"there is no repository {what} on the hub, or it is private: check the name, or "
            f"{LOGIN}"
        ) from error
    except errors.EntryNotFoundError as error:
        raise HubError(f"{what} has changed meanwhile, and a file is gone: try again") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise HubError(f"the hub does not let us read {what}: {LOGIN}") from error
        said = f"it answered {status}" if status else "it did not answer"
        raise HubError(
            f"the hub cannot give {what} now ({said}): try again later",
            passes=status == 429 or status >= 500,
        ) from error
    except OSError as error:  # no network, no name, a broken connection; httpx's errors among them
        raise HubError(f"cannot reach the hub for {what}: {_reason(error)}", passes=True) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore"):
            raise
        raise HubError(f"cannot reach the hub for {what}: {_reason(error)}", passes=True) from error


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{text[:200]}. Check the network, then try again"
