"""Says what a file that is not of the wanted format looks like, from its first bytes."""

from __future__ import annotations

_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "it is a git-lfs pointer: run `git lfs pull` to get the file."),
    (b"PK\x03\x04", "it is a zip archive, as PyTorch checkpoints are. Look for a {} file."),
    (b"\x80\x02", "it is a Python pickle, as old PyTorch checkpoints are. Look for a {} file."),
    (b"\x1f\x8b", "it is compressed with gzip. Unpack it first."),
    (b"\x28\xb5\x2f\xfd", "it is compressed with zstd. Unpack it first."),
    (b"GGUF", "it is a GGUF file. Give its path where one is wanted, or look for a {} file."),
    (b"FUGG", "its bytes are swapped: a big-endian GGUF. Take the little-endian file."),
    (b"ggml", "it is in the old GGML format. Convert the model again, to GGUF."),
    (b"lmgg", "it is in the old GGML format. Convert the model again, to GGUF."),
    (b"fmgg", "it is in the old GGMF format. Convert the model again, to GGUF."),
    (b"tjgg", "it is in the old GGJT format. Convert the model again, to GGUF."),
    (b"\0\0\0\0", "it starts with zeros, as an unfinished download does. Download it again."),
)


def describe_bytes(start: bytes, suffix: str = ".gguf") -> str:
    """Return a guess and an advice, as a clause, for a file that starts with these bytes.

    `suffix` is that of the files that would do.
    """
    for magic, text in _STARTS:
        if start.startswith(magic):
            return text.format(suffix)
    if suffix == ".gguf" and start[8:9] == b"{":
        return "it looks like safetensors. Look for a .gguf file of this model."
    text = start.lstrip()[:1].decode("latin-1")
    if text == "<":
        return "it looks like a web page, so the download failed. Download the file itself."
    if text in ("{", "["):
        return f"it looks like JSON. Give the path of the {suffix} file."
    return f"its kind is not known. Give the path of a {suffix} file."
