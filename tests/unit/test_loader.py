"""Which of a file's tensors get memory, and of which kind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from localmoe.backends.llama import parameters
from localmoe.backends.llama.bindings import L
from localmoe.backends.llama.loader import WeightBuffers, load_model
from localmoe.backends.llama.skeleton import Skeleton
from localmoe.backends.llama.source import ModelSource, open_source
from localmoe.backends.llama.tensor_reads import TensorReads
from localmoe.errors import EngineError, ModelFormatError


def test_only_experts_of_layers_in_use_wait_for_slots(zoo_model: Callable[[str], Path]) -> None:
    """llama.cpp creates hy_v3's layer behind the last one, although it is not asked to."""
    L.llama_backend_init()
    source = open_source(zoo_model("hy_v3"), None)
    try:
        model = load_model(source, stream=True)
        waiting = set(model.experts)
        model.close()
    finally:
        source.close()
    assert any("_exps." in tensor.name for tensor in source.catalog.unused)
    assert waiting == {part.tensor for layer in source.catalog.layers for part in layer.parts}


@pytest.mark.parametrize("dry", [False, True])
def test_large_tensors_are_not_left_to_be_mapped(
    monkeypatch: pytest.MonkeyPatch, dry: bool
) -> None:
    """By itself, llama.cpp maps tables above 4 GiB from the file: of that there is no data."""
    modes: list[int] = []

    def refuse(params: Any, *_: object) -> int:
        modes.append(params.lazy_mode)
        return 0

    monkeypatch.setattr(parameters, "load_files", refuse)
    with pytest.raises(ModelFormatError):
        parameters.open_model(["model.gguf"], dry=dry)
    assert modes == [0]
    assert L.llama_model_default_params().lazy_mode != 0


@pytest.fixture
def source(zoo_model: Callable[[str], Path]) -> Iterator[ModelSource]:
    L.llama_backend_init()
    source = open_source(zoo_model("qwen3moe"), None)
    yield source
    source.close()


@pytest.fixture
def freed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The models that llama.cpp was told to free."""
    handles: list[int] = []
    free = L.llama_model_free

    def note(handle: int) -> None:
        handles.append(handle)
        free(handle)

    monkeypatch.setattr(L, "llama_model_free", note)
    return handles


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("no")])
@pytest.mark.parametrize(("callback", "frees"), [("_make_buffer", 0), ("_note", 1)])
def test_an_exception_in_a_callback_surfaces_as_itself(
    source: ModelSource,
    freed: list[int],
    monkeypatch: pytest.MonkeyPatch,
    callback: str,
    frees: int,
    error: BaseException,
) -> None:
    """After the last callback llama.cpp knows of no error: it returns a model, which is freed."""

    def fail(_buffers: WeightBuffers, _: int) -> None:
        raise error

    monkeypatch.setattr(WeightBuffers, callback, fail)
    with pytest.raises(type(error)) as caught:
        load_model(source, stream=True)
    assert caught.value is error
    assert len(freed) == frees


def test_a_stand_in_is_cut_even_after_an_error(
    source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp goes on, and would fill memory with a stand-in that is as long as the model."""
    shrink, calls = Skeleton.shrink, 0

    def interrupted(skeleton: Skeleton) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise KeyboardInterrupt
        shrink(skeleton)

    monkeypatch.setattr(Skeleton, "shrink", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_model(source, stream=True)
    assert calls > 1


def test_ctrl_c_ends_loading_between_callbacks(
    source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[int] = []

    def press(_buffers: WeightBuffers, tensor: int) -> None:
        noted.append(tensor)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(WeightBuffers, "_note", press)
        with pytest.raises(KeyboardInterrupt):
            load_model(source, stream=True)
    assert len(noted) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    load_model(source, stream=True).close()


def test_ctrl_c_ends_the_wait_for_weights(source: ModelSource) -> None:
    def press(_nbytes: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    model = load_model(source, stream=True)
    with pytest.raises(KeyboardInterrupt):
        model.wait(press)
    model.close()


@pytest.mark.parametrize("stream", [True, False])
def test_every_byte_is_read_once(source: ModelSource, stream: bool) -> None:
    told: list[int] = []
    model = load_model(source, stream=stream)
    model.wait(told.append)
    model.close()
    catalog = source.catalog
    assert sum(told) == catalog.resident_nbytes + (0 if stream else catalog.expert_nbytes)


def test_a_tensor_that_the_headers_do_not_have(
    source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = TensorReads({}, source.files, workers=1)
    with pytest.raises(EngineError, match="does not know"):
        load_model(source, stream=True, resident=reads)
