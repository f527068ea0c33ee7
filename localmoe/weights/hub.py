"""What Hugging Face says of a repository, and every way in which it may not say it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from localmoe.errors import HubError
from localmoe.weights.hub_names import HubName
from localmoe.weights.quantized_files import HubFile, Quantized, check_files, choose, quantizations

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True)
class Listing:
    """A repository at one commit, and the model in it that is meant."""

    repository: str
    commit: str
    chosen: Quantized


def look_up(name: HubName) -> Listing:
    """Ask the hub for a repository's files, and choose those of the quantization.

    Raises HubError.
    """
    from huggingface_hub import HfApi

    with hub_errors(name.repository):
        info = HfApi().model_info(name.repository, files_metadata=True)
    files = []
    for sibling in info.siblings or ():
        lfs = getattr(sibling, "lfs", None)
        digest = f"sha256:{lfs.sha256}" if lfs else f"blob:{sibling.blob_id}"
        nbytes = (lfs.size if lfs else sibling.size) or 0
        files.append(HubFile(str(sibling.rfilename), int(nbytes), digest))
    check_files(name.repository, files)
    if not isinstance(info.sha, str) or not info.sha.isalnum():
        raise HubError(f"the hub names no commit of {name.repository}: try again later")
    found = quantizations(files)
    return Listing(name.repository, info.sha, choose(name.repository, found, name.quantization))


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
        raise HubError(f"the hub cannot give {what} now ({said}): try again later") from error
    except OSError as error:  # no network, no name, a broken connection; httpx's errors among them
        raise HubError(f"cannot reach the hub for {what}: {_reason(error)}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore"):
            raise
        raise HubError(f"cannot reach the hub for {what}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{text[:200]}. Check the network, then try again"
