"""transformers without its remarks: what matters of them is raised."""

from __future__ import annotations

import warnings

from transformers.utils import logging


class quietly:  # noqa: N801 (reads like a statement)
    """While this lasts transformers writes nothing."""

    def __enter__(self) -> None:
        self._level = logging.get_verbosity()
        self._bars = logging.is_progress_bar_enabled()
        logging.set_verbosity(logging.CRITICAL)
        logging.disable_progress_bar()
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *_: object) -> None:
        self._warnings.__exit__(None, None, None)
        logging.set_verbosity(self._level)
        if self._bars:
            logging.enable_progress_bar()
