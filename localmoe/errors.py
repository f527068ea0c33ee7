"""Every error that localmoe raises on purpose, as one tree.

    LocalMoeError
    ├── SettingsError            an option has a value that cannot be used
    ├── ModelError               the model file
    │   ├── ModelNotFoundError       no such file, or a shard is missing
    │   ├── ModelFormatError         the header says something that cannot be true
    │   └── UnsupportedModelError    readable, but not something that can be run here
    ├── BudgetError              the memory budget cannot hold what the model needs
    ├── ExpertReadError          a read of expert weights failed or came short
    ├── EngineError              the engine underneath refused or failed
    │   ├── EngineVersionError       an engine version that localmoe was not tested with
    │   ├── ContextFullError         no room left for these tokens
    │   ├── InterruptedDecodeError   somebody asked the engine to stop
    │   └── LostRankError            a process that runs a part of the model is gone
    ├── ChatError                a chat template or message cannot be rendered
    │   └── ConstraintError          a schema or grammar that no answer can be held to
    └── HubError                 Hugging Face, or the way there, did not give what was asked for

Each message says what was wanted, what was found and what to do.
"""

from __future__ import annotations

import os


class LocalMoeError(Exception):
    """Base of all errors that a user can do something about."""


class SettingsError(LocalMoeError):
    """An option has a value that cannot be used."""


class ModelError(LocalMoeError):
    """Something is wrong with a model file."""


class ModelNotFoundError(ModelError):
    """The model file, or one of its shards, does not exist or cannot be opened."""


class ModelFormatError(ModelError):
    """A model file is truncated, damaged or hostile."""


class UnsupportedModelError(ModelError):
    """A readable model that localmoe or its engine cannot run."""


class BudgetError(LocalMoeError):
    """The memory budget is too small; the message names the smallest that works."""


class ExpertReadError(LocalMoeError):
    """A read of weights failed or came short.

    Attributes: `path`, `offset` in bytes, `errno` (0 for a short read).
    """

    def __init__(self, path: str, offset: int, nbytes: int, error: OSError | None) -> None:
        self.path, self.offset, self.nbytes = path, offset, nbytes
        self.errno = (error.errno or 0) if error else 0
        if error is None:
            reason = "the file ended before that (it is shorter than when it was opened)"
        else:
            reason = os.strerror(self.errno) if self.errno else str(error)
        super().__init__(
            f"could not read {nbytes} bytes at offset {offset} of {path}: {reason}. "
            "Check the disk and that the file was not changed, then ask again."
        )


class EngineError(LocalMoeError):
    """The engine that computes refused the model or failed."""


class EngineVersionError(EngineError):
    """An engine version that localmoe was not tested with."""


class ContextFullError(EngineError):
    """The context has no room for these tokens."""


class InterruptedDecodeError(EngineError):
    """A decode was stopped by `Engine.interrupt`; the position is as after any error there."""


class LostRankError(EngineError):
    """A process that runs a part of the model is gone, or out of step: the engine is of no use.

    Its thread may wait for that process forever: a program should end itself with `os._exit`.
    """


class ChatError(LocalMoeError):
    """A chat template failed or refused the messages."""


class ConstraintError(ChatError):
    """A JSON schema or a grammar that answers cannot be held to."""


class HubError(LocalMoeError):
    """A repository cannot be listed or downloaded, or has not what was asked for.

    Attribute: `passes`, whether trying again soon may help.
    """

    def __init__(self, message: str, *, passes: bool = False) -> None:
        super().__init__(message)
        self.passes = passes
