"""The small files of a checkpoint that lies on Hugging Face."""

from __future__ import annotations

from localmoe.errors import HubError, ModelFormatError
from localmoe.weights.checkpoint_config import CheckpointConfig, parse_object
from localmoe.weights.checkpoint_files import CONFIG
from localmoe.weights.hub import Listing, fetch_whole
from localmoe.weights.quantized_files import HubFile

_MOST_NBYTES = 16 << 20


def fetch_small(listing: Listing, file: HubFile) -> bytes:
    """Return the content of a file that says how a model is to be used. Raises HubError."""
    if file.nbytes > _MOST_NBYTES:
        raise HubError(
            f"{file.path} of {listing.repository} is said to have {file.nbytes} bytes: not believed"
        )
    return fetch_whole(listing, file)


def read_remote_config(listing: Listing) -> CheckpointConfig:
    """Return the configuration of a checkpoint. Raises HubError."""
    file = next(file for file in listing.chosen.files if file.path == CONFIG)
    where = f"{listing.repository}/{CONFIG}"
    try:
        return CheckpointConfig(where, parse_object(fetch_small(listing, file), where))
    except ModelFormatError as error:
        raise HubError(str(error)) from error
