"""Loads a GGUF into llama.cpp: resident tensors into huge pages, experts only if all fit."""

from __future__ import annotations

import ctypes as C
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
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
from localmoe.cache.memory import HostMemory, round_up
from localmoe.errors import EngineError
from localmoe.weights.catalog import Extent

_ALIGNMENT_NBYTES = 4096  # of resident tensors: direct reads then land without a bounce buffer
_EXPERT_PATTERN = rb"^blk\.\d+\.ffn_(gate|up|down|gate_up)_exps\.(weight|bias)$"
OnBytes = Callable[[int], None]
Result = TypeVar("Result")


class WeightBuffers:
    """A buffer type of our own: hands out memory and notes each tensor instead of copying it.

    llama.cpp calls it while it loads. An exception cannot pass through C: after one llama.cpp gets
    nothing more from here, and `check` raises it.
    """

    def __init__(
        self,
        label: str,
        *,
        allocate: bool,
        unused: frozenset[str],
        slack_nbytes: int,
        on_bytes: OnBytes,
    ) -> None:
        """Tensors with names in `unused` get no memory: no graph has them."""
        self.memory: list[HostMemory] = []
        self.tensors: dict[str, int] = {}
        """Name of each tensor that was loaded for use, and the address of its structure."""
        self.before_mapping: Callable[[], None] = _nothing
        """Called before llama.cpp maps a file, and often besides."""
        self._error: BaseException | None = None
        self._allocate, self._slack, self._on_bytes = allocate, slack_nbytes, on_bytes
        self._unused, self._first = unused, dict[str, int]()
        self._label = C.create_string_buffer(label.encode())
        self._set_tensor = SET_TENSOR(self._note_tensor)
        self._type = BufferType(
            GET_NAME(self._get_name),
            ALLOC_BUFFER(self._alloc),
            GET_SIZE(lambda _: _ALIGNMENT_NBYTES),
            GET_SIZE(),
            GET_ALLOC_SIZE(self._alloc_size),
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

    def memory_of(self, address: int) -> tuple[HostMemory, int]:
        """Return the memory that holds an address, and the offset in it."""
        for memory in self.memory:
            if memory.address <= address < memory.address + memory.nbytes:
                return memory, address - memory.address
        raise EngineError(f"llama.cpp put a tensor at {address:#x}, outside of its buffer")

    def _get_name(self, _type: int | None) -> int:
        # After an error, too: a stand-in that is mapped at its whole length takes memory for it.
        self._guarded(self.before_mapping, anyway=True)
        return C.addressof(self._label)

    def _alloc_size(self, _type: int | None, tensor: int) -> int:
        return self._guarded(lambda: self._size_of(tensor)) or _ALIGNMENT_NBYTES

    def _size_of(self, tensor: int) -> int:
        # Streamed experts take their place in the slots later: here only a token of it.
        t = Tensor.from_address(tensor)
        is_first = self._first.setdefault(_name(t), tensor) == tensor
        if not self._allocate or not is_first or _name(t) in self._unused:
            return _ALIGNMENT_NBYTES
        return round_up(t.nb[3] * t.ne[3], _ALIGNMENT_NBYTES) + self._slack

    def _alloc(self, _type: int | None, nbytes: int) -> int | None:
        # Without a buffer llama.cpp gives up.
        return self._guarded(lambda: self._make_buffer(nbytes))

    def _make_buffer(self, nbytes: int) -> int:
        memory = HostMemory(nbytes)
        self.memory.append(memory)
        if self._allocate:
            memory.prefault(on_bytes=self._tell)
        address = int(buffer_from_pointer(memory.address, nbytes))
        buffer = Buffer.from_address(address)
        buffer.set_tensor = C.cast(self._set_tensor, C.c_void_p).value
        buffer.buft = self.address
        return address

    def _note_tensor(self, _buffer: int, tensor: int, _data: int, _offset: int, _n: int) -> None:
        self._guarded(lambda: self._note(tensor))

    def _note(self, tensor: int) -> None:
        name = _name(Tensor.from_address(tensor))
        first = self._first[name]
        if first != tensor:
            # The embedding may be the output matrix, too: one tensor of the file, two structures.
            Tensor.from_address(tensor).data = Tensor.from_address(first).data
        elif name not in self._unused:
            self.tensors[name] = tensor

    def _tell(self, nbytes: int) -> None:
        self.check()
        self._on_bytes(nbytes)

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
    """llama.cpp's model and the memory under it.

    `experts` maps the names of expert tensors that wait for slots to their structures' addresses.
    """

    def __init__(self, buffers: Sequence[WeightBuffers], streamed: bool) -> None:
        self.handle = 0
        """llama.cpp's, once it has created the model."""
        self._buffers = tuple(buffers)
        self.experts: Mapping[str, int] = buffers[1].tensors if streamed else {}

    def close(self) -> None:
        """Free the model, then its memory."""
        if self.handle:
            L.llama_model_free(self.handle)
            self.handle = 0
        for buffers in self._buffers:
            for memory in buffers.memory:
                memory.close()


def load_model(
    source: ModelSource, *, stream: bool, on_bytes: OnBytes = lambda _: None, workers: int = 4
) -> LoadedModel:
    """Create the model and read its resident tensors; with `stream` False its experts too.

    `on_bytes` is told of bytes made ready: each counts once when its page is touched and once when
    it is read. Raises ModelFormatError, BudgetError, ExpertReadError, EngineError.
    """
    # Some loaders create the layers that predict further tokens, even if they are not asked to.
    unused = frozenset(tensor.name for tensor in source.catalog.unused)
    make = partial(WeightBuffers, unused=unused, slack_nbytes=2 * source.block, on_bytes=on_bytes)
    resident = make("localmoe", allocate=True)
    experts = make("localmoe-experts", allocate=not stream)
    model = LoadedModel((resident, experts), stream)
    try:
        _open(source, model, resident, experts)
        _fill(source, (resident,) if stream else (resident, experts), on_bytes, workers)
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


def _fill(
    source: ModelSource, buffers: Sequence[WeightBuffers], on_bytes: OnBytes, workers: int
) -> None:
    """Read every noted tensor into its place, several at a time."""
    catalog = source.catalog
    extents = {tensor.name: tensor.extent for tensor in catalog.resident}
    extents.update((p.tensor, p.extent) for layer in catalog.layers for p in layer.parts)

    def read(buffer: WeightBuffers, tensor: int, extent: Extent) -> int:
        memory, start = buffer.memory_of(Tensor.from_address(tensor).data)
        source.files[extent.path].read(memory, start, extent.offset, extent.nbytes)
        return extent.nbytes

    with ThreadPoolExecutor(workers, thread_name_prefix="localmoe-load") as pool:
        reads = [
            pool.submit(read, buffer, tensor, extents[name])
            for buffer in buffers
            for name, tensor in buffer.tensors.items()
        ]
        try:
            for done in as_completed(reads):
                on_bytes(done.result())
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
