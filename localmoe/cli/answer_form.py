"""The form that answers must have, read from the files that were named."""

from __future__ import annotations

import json
from pathlib import Path

from localmoe.chat.request import Grammar, JsonSchema
from localmoe.cli.run_options import RunOptions
from localmoe.errors import SettingsError

_MAX_NBYTES = 4_000_000


def read_form(options: RunOptions) -> JsonSchema | Grammar | None:
    """Return what --schema or --grammar asks for. Raises SettingsError."""
    if options.schema_path and options.grammar_path:
        raise SettingsError("an answer follows a --schema or a --grammar: give one of them")
    if options.grammar_path:
        return Grammar(_text("--grammar", options.grammar_path))
    if not options.schema_path:
        return None
    try:
        schema = json.loads(_text("--schema", options.schema_path))
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"--schema {options.schema_path}: no JSON: {error}") from error
    if not isinstance(schema, dict):
        raise SettingsError(f"--schema {options.schema_path}: a JSON object was expected")
    return JsonSchema(schema)


def _text(option: str, path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_NBYTES:
            raise SettingsError(f"{option} {path}: the file is larger than {_MAX_NBYTES} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{option} {path}: cannot be read: {error}") from error
