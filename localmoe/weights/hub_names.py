"""How a model on Hugging Face is named: OWNER/REPO, with :QUANT behind it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from localmoe.errors import SettingsError

_PREFIXES = ("https://huggingface.co/", "http://huggingface.co/", "huggingface.co/", "hf.co/")
_NO_REPOSITORY = (".gguf", ".git", ".safetensors", ".safetensors.index.json")
"""How names end that are of files, and of copies made with git."""
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9_]|[.-](?![.-])){0,95}"
_NAME = re.compile(rf"(?P<owner>{_PART})/(?P<repo>{_PART})(?::(?P<quant>[A-Za-z0-9_.-]{{1,96}}))?")


@dataclass(frozen=True)
class HubName:
    """A repository, and which quantization of it; None: the usual one."""

    repository: str
    quantization: str | None = None

    def __str__(self) -> str:
        return f"{self.repository}:{self.quantization}" if self.quantization else self.repository


def parse_hub_name(text: str) -> HubName | None:
    """Return the name that is written, with or without an address before it; None: it is none."""
    for prefix in _PREFIXES:
        text = text.removeprefix(prefix)
    match = _NAME.fullmatch(text.strip().rstrip("/"))
    if match is None or match["repo"].lower().endswith(_NO_REPOSITORY):
        return None
    return HubName(f"{match['owner']}/{match['repo']}", match["quant"])


def hub_name(text: str) -> HubName:
    """Return the name that is written. Raises SettingsError."""
    name = parse_hub_name(text)
    if name is None:
        raise SettingsError(
            f"{text!r} is no name of a model on Hugging Face: write OWNER/REPO or "
            "OWNER/REPO:QUANT, as in unsloth/GLM-4.7-GGUF:Q4_K_M"
        )
    return name
