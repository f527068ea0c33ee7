"""The hyperparameters of one model: metadata keys without the architecture in front."""

from __future__ import annotations

from localmoe.errors import ModelFormatError
from localmoe.weights.gguf import architecture_of
from localmoe.weights.gguf_header import GgufHeader
from localmoe.weights.gguf_values import Value


class Hparams:
    """Reads numbers, and says which key is wrong."""

    def __init__(self, header: GgufHeader) -> None:
        self.header, self.path = header, header.path
        self.architecture = architecture_of(header)

    def value(self, key: str) -> Value | None:
        """Return what the file has under this key."""
        return self.header.metadata.get(f"{self.architecture}.{key}")

    def integer(self, key: str, default: int) -> int:
        """Return a number; of an array the first. Its range was checked before."""
        value = self.value(key)
        if isinstance(value, tuple):
            value = value[0] if value else default
        return value if isinstance(value, int) else default

    def elements(self, key: str, count: int) -> tuple[int, ...] | None:
        """Return so many numbers: those of an array, or the same one again and again.

        Raises ModelFormatError for an array of another length.
        """
        value = self.value(key)
        if value is None:
            return None
        if isinstance(value, tuple):
            if len(value) != count:
                raise self.error(key, f"should have {count} elements", value)
            return tuple(int(element) for element in value)
        return (self.integer(key, 0),) * count

    def error(self, key: str, wanted: str, found: object) -> ModelFormatError:
        """Return an error that says what the key should be, as a clause, and what it is."""
        return ModelFormatError(
            f"{self.path}: {self.architecture}.{key} {wanted}, but is {str(found)[:80]}. "
            "The file is damaged, or made by another program."
        )
