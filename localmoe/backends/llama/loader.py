"""Has llama.cpp create a model whose weights lie in memory of ours."""

from __future__ import annotations

import ctypes as C
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from localmoe.backends.interrupts import DeferredInterrupt
from localmoe.backends.llama import parameters
from localmoe.backends.llama.bindings import (
    ALLOC_BUFFER,
    GET_ALLOC_SIZE,
    GET_NAME,
    GET_SIZE,
    IS_HOST,
    SET_TENSOR,
    Buffer,
    BufferOverride,
    BufferType,
    L,
    Tensor,
    buffer_from_pointer,
    cpu_device,
)
from localmoe.backends.llama.skeleton import Skeleton
from localmoe.backends.llama.source import ModelSource
from localmoe.backends.llama.tensor_reads import OnBytes, TensorReads
from localmoe.cache.memory import HostMemory
from localmoe.weights.catalog import ExpertPart

_TOKEN_NBYTES = 64
"""What llama.cpp is given for each tensor: address space that nobody touches."""
_EXPERT_PATTERN = rb"^blk\.\d+\.ffn_(gate|up|down|gate_up)_exps\.(weight|bias)$"
Result = TypeVar("Result")


class WeightBuffers:
    """A buffer type of our own: notes each tensor, and lets it point at memory of ours.

    llama.cpp calls it while it loads. An exception cannot pass through C: after one llama.cpp gets
    nothing more from here, and `check` raises it.
    """

    def __init__(self, label: str, unused: frozenset[str], reads: TensorReads | None) -> None:
        """`reads` knows where the tensors lie; None where they take their places in slots later.

        Tensors with names in `unused` get no memory: no graph has them.
        """
        self.memory: list[HostMemory] = []
        """Address space that llama.cpp believes to hold the tensors."""
        self.tensors: dict[str, int] = {}
        """Name of each tensor that was loaded for use, and the address of its structure."""
        self.before_mapping: Callable[[], None] = _nothing
        """Called before llama.cpp maps a file, and often besides."""
        self._error: BaseException | None = None
        self._reads, self._unused = reads, unused
        self.filled = reads is not None
        self._label = C.create_string_buffer(label.encode())
        self._set_tensor = SET_TENSOR(self._note_tensor)
        self._type = BufferType(
            GET_NAME(self._get_name),
            ALLOC_BUFFER(self._alloc),
            GET_SIZE(lambda _: _TOKEN_NBYTES),
            GET_SIZE(),
            GET_ALLOC_SIZE(lambda _type, _tensor: _TOKEN_NBYTES),
            IS_HOST(lambda _: True),
            cpu_device(),
            None,
        )
        self.address = C.addressof(self._type)

    def stop(self) -> None:
        """Let loading end as if Ctrl-C had been pressed in a callback."""
        self._error = self._error or KeyboardInterrupt()

    def check(self) -> None:
        """Raise what went wrong in a callback."""
        if self._error:
            raise self._error

    def _get_name(self, _type: int | None) -> int:
        # After an error, too: a stand-in that is mapped at its whole length takes memory for it.
        self._guarded(self.before_mapping, anyway=True)
        return C.addressof(self._label)

    def _alloc(self, _type: int | None, nbytes: int) -> int | None:
        # Without a buffer llama.cpp gives up.
        return self._guarded(lambda: self._make_buffer(nbytes))

    def _make_buffer(self, nbytes: int) -> int:
        memory = HostMemory(nbytes)
        self.memory.append(memory)
        address = int(buffer_from_pointer(memory.address, nbytes))
        buffer = Buffer.from_address(address)
        buffer.set_tensor = C.cast(self._set_tensor, C.c_void_p).value
        buffer.buft = self.address
        return address

    def _note_tensor(self, _buffer: int, tensor: int, _data: int, _offset: int, _n: int) -> None:
        self._guarded(lambda: self._note(tensor))

    def _note(self, tensor: int) -> None:
        # The embedding may be the output matrix, too: one tensor of the file, two structures.
        name = _name(Tensor.from_address(tensor))
        if name in self._unused:
            return
        if self._reads:
            Tensor.from_address(tensor).data = self._reads.address(name)
        self.tensors[name] = tensor

    def _guarded(self, action: Callable[[], Result], *, anyway: bool = False) -> Result | None:
        """Return what the action does; None after anything went wrong."""
        if anyway or self._error is None:
            try:
                return action()
            except BaseException as error:
                self._error = self._error or error
        return None


def _nothing() -> None:
    """Do nothing."""


def _name(tensor: Tensor) -> str:
    return str(tensor.name.decode(errors="replace"))


class LoadedModel:
    """llama.cpp's model and the memory under it, which fills until `wait` returns.

    `experts` maps the names of expert tensors that wait for slots to their structures' addresses.
    """

    def __init__(self, buffers: Sequence[WeightBuffers], reads: Sequence[TensorReads]) -> None:
        self.handle = 0
        """llama.cpp's, once it has created the model."""
        self._buffers, self._reads = tuple(buffers), tuple(reads)
        self.experts: Mapping[str, int] = {} if buffers[1].filled else buffers[1].tensors

    def wait(self, on_bytes: OnBytes = lambda _: None) -> None:
        """Block until all weights have been read; `on_bytes` is told of them. ExpertReadError."""
        for reads in self._reads:
            reads.wait(on_bytes)

    def close(self) -> None:
        """Free the model, then its memory."""
        if self.handle:
            L.llama_model_free(self.handle)
            self.handle = 0
        for reads in self._reads:
            reads.close()
        for buffers in self._buffers:
            for memory in buffers.memory:
                memory.close()


def read_resident(source: ModelSource, workers: int) -> TensorReads:
    """Begin to read what every token needs; llama.cpp is not needed for that."""
    tensors = {tensor.name: tensor.extent for tensor in source.catalog.resident}
    return TensorReads(tensors, source.files, workers)


def load_model(
    source: ModelSource, *, stream: bool, workers: int = 4, resident: TensorReads | None = None
) -> LoadedModel:
    """Create the model while its resident tensors are read; with `stream` False its experts too.

    `resident`: reads that have begun, which the model then owns. Raises ModelFormatError,
    BudgetError, EngineError.
    """
    # Some loaders create the layers that predict further tokens, even if they are not asked to.
    unused = frozenset(tensor.name for tensor in source.catalog.unused)
    reads = [resident or read_resident(source, workers)]
    if not stream:
        parts = [part for layer in source.catalog.layers for part in layer.parts]
        experts = {p.tensor: p.extent for p in parts if isinstance(p, ExpertPart)}  # as GGUF has
        reads.append(TensorReads(experts, source.files, workers))
    buffers = (
        WeightBuffers("localmoe", unused, reads[0]),
        WeightBuffers("localmoe-experts", unused, None if stream else reads[1]),
    )
    model = LoadedModel(buffers, reads)
    try:
        _open(source, model, *buffers)
    except BaseException:
        model.close()
        raise
    return model


def _open(
    source: ModelSource, model: LoadedModel, resident: WeightBuffers, experts: WeightBuffers
) -> None:
    """Have llama.cpp create the tensors in our buffers. Raises what a callback caught, first."""
    overrides = (BufferOverride * 3)(
        BufferOverride(_EXPERT_PATTERN, experts.address),
        BufferOverride(b".*", resident.address),
        BufferOverride(None, None),
    )

    def stop() -> None:
        resident.stop()
        experts.stop()

    with Skeleton(source.headers) as skeleton, DeferredInterrupt(stop) as interrupt:
        resident.before_mapping = experts.before_mapping = skeleton.shrink
        try:
            model.handle = parameters.open_model(
                skeleton.paths, overrides=overrides, experts_used=source.override
            )
        finally:
            resident.before_mapping = experts.before_mapping = _nothing
            resident.check()
            experts.check()
    interrupt.check()
