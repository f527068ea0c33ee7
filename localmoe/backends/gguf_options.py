"""Options that only the engine for GGUF files has."""

from __future__ import annotations

from localmoe.errors import SettingsError
from localmoe.settings import Settings


def refuse_gguf_options(settings: Settings, engine: str) -> None:
    """Raise SettingsError where another engine is asked for what it does not have."""
    for name, value, default in (
        ("--kv-type", settings.kv_type, Settings.kv_type),
        ("--experts-used", settings.experts_used, None),
        ("--mirror", settings.mirrors, ()),
    ):
        if value != default:
            raise SettingsError(f"{name} is for GGUF files: the {engine} engine has no such option")
