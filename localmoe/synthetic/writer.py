"""Writes a model's GGUF: its header alone, as a file of the true length, or with random weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

from localmoe.settings import Progress
from localmoe.synthetic.blocks import Bytes, random_blocks
from localmoe.synthetic.config import Config
from localmoe.synthetic.draft import Draft, Planned
from localmoe.synthetic.drafting import draft_model
from localmoe.synthetic.quantization import quantization_named, tensor_types
from localmoe.weights.ggml_types import GGML_TYPES

STAGE = "writing weights"
_TYPES = {each.name: each for each in GGML_TYPES.values()}
_PIECE_ELEMENTS = 1 << 24
_ALIGNMENT = 32


def write_stand_in(path: Path, config: Config, quantization: str) -> None:
    """Write a model's header, and behind it a hole as long as its weights: no data.

    The file serves to plan: it takes some megabytes on the disk. Raises SettingsError for an
    unknown quantization, OSError.
    """
    draft, types = _planned(config, quantization)
    _write_header(path, draft, types)
    os.truncate(path, _file_nbytes(path, draft, types))


def write_checkpoint(
    path: Path, config: Config, quantization: str, progress: Progress | None = None
) -> None:
    """Write a model with random weights, the same ones each time.

    It computes as long as the real one, and says nothing. `progress(stage, done, total)` hears of
    bytes. Raises SettingsError for an unknown quantization, OSError; a file that could not be
    finished is the caller's to remove.
    """
    draft, types = _planned(config, quantization)
    _write(path, draft, types, progress)


def write_uniform(path: Path, config: Config, type_name: str) -> None:
    """Write a model with random weights whose matrices are all of one ggml type. Raises OSError."""
    draft = draft_model(config)
    _write(path, draft, [type_name if t.is_matrix else "F32" for t in draft.tensors], None)


def model_nbytes(config: Config, quantization: str) -> tuple[int, int]:
    """Return the bytes of what stays resident and of all routed experts. Raises SettingsError."""
    draft, types = _planned(config, quantization)
    whole = routed = 0
    for tensor, type_name in zip(draft.tensors, types, strict=True):
        nbytes = _nbytes(tensor, type_name)
        whole += nbytes
        routed += nbytes if "_exps." in tensor.name else 0
    return whole - routed, routed


def _planned(config: Config, quantization: str) -> tuple[Draft, list[str]]:
    draft = draft_model(config)
    return draft, tensor_types(config, draft.tensors, quantization_named(quantization))


def _write(path: Path, draft: Draft, types: list[str], progress: Progress | None) -> None:
    _write_header(path, draft, types)
    total, done = sum(map(_nbytes, draft.tensors, types)), 0
    rng = np.random.Generator(np.random.SFC64(0))
    with open(path, "r+b") as file:
        file.seek(0, os.SEEK_END)
        for tensor, type_name in zip(draft.tensors, types, strict=True):
            file.write(bytes(-file.tell() % _ALIGNMENT))
            for piece in _pieces(tensor, type_name, rng):
                file.write(piece.data)
                done += piece.nbytes
                if progress:
                    progress(STAGE, done, total)
        file.truncate(_file_nbytes(path, draft, types))


def _nbytes(tensor: Planned, type_name: str) -> int:
    kind = _TYPES[type_name]
    return tensor.n_elements // kind.block_elements * kind.block_nbytes


def _write_header(path: Path, draft: Draft, types: list[str]) -> None:
    config = draft.config
    writer = GGUFWriter(path, config.architecture)
    try:
        writer.add_name(f"{config.name}, random weights")
        _add_tokenizer(writer, config.vocabulary)
        for name, value in draft.keys.items():
            _add_key(writer, name, value)
        for tensor, type_name in zip(draft.tensors, types, strict=True):
            kind = _TYPES[type_name]
            row = tensor.dims[-1] // kind.block_elements * kind.block_nbytes
            is_float = type_name == "F32"
            writer.add_tensor_info(
                tensor.name,
                tensor.dims if is_float else (*tensor.dims[:-1], row),
                np.dtype(np.float32) if is_float else np.dtype(np.uint8),
                _nbytes(tensor, type_name),
                GGMLQuantizationType[type_name],
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


def _file_nbytes(path: Path, draft: Draft, types: list[str]) -> int:
    """Return the length of a file whose header is written: tensors are aligned, also the last."""
    nbytes = path.stat().st_size
    for tensor, type_name in zip(draft.tensors, types, strict=True):
        nbytes += -nbytes % _ALIGNMENT + _nbytes(tensor, type_name)
    return nbytes + -nbytes % _ALIGNMENT


def _add_tokenizer(writer: GGUFWriter, n_vocab: int) -> None:
    """Add a vocabulary of the true size, whose tokens are numbers in brackets."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"<{number}>".encode() for number in range(n_vocab)])
    writer.add_token_types([1] * n_vocab)
    writer.add_token_merges(["< 1"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)


def _add_key(writer: GGUFWriter, name: str, value: object) -> None:
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, list):
        writer.add_array(name, value)
    else:
        writer.add_string(name, str(value))


def _pieces(tensor: Planned, type_name: str, rng: np.random.Generator) -> Iterator[Bytes]:
    if not tensor.is_matrix:
        numbers = rng.standard_normal(tensor.n_elements, np.float32) * np.float32(tensor.std)
        yield (numbers + np.float32(tensor.mean)).view(np.uint8)
        return
    left = tensor.n_elements
    while left:
        count = min(left, _PIECE_ELEMENTS)
        yield random_blocks(type_name, count, tensor.std, rng)
        left -= count
