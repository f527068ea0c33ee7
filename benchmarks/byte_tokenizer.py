"""The smallest tokenizer that any text passes through: a token for each byte."""

from __future__ import annotations

from pathlib import Path


def write_byte_tokenizer(folder: Path) -> None:
    """Write tokenizer.json into `folder`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
