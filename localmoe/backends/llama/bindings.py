"""Every fact of llama.cpp's C ABI that localmoe uses, proven against the loaded library.

llama-cpp-python's own bindings serve for the public functions. What they leave out (the tensor and
buffer structures, custom buffer types) is declared here, and `_prove` compares each offset with the
library's own accessors when this module is imported: a library that disagrees is refused, not used.
"""

from __future__ import annotations

import ctypes as C
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from localmoe.backends.llama.versions import INSTALL, TESTED_VERSIONS
from localmoe.errors import EngineError, EngineVersionError

MAX_NAME_NBYTES = 64  # GGML_MAX_NAME
TYPE_F32, TYPE_I32 = 0, 26  # GGML_TYPE_F32, GGML_TYPE_I32

# By default OpenMP threads spin at every barrier until they have used up their core, which lets a
# busy neighbour slow decoding threefold; with hardly any spinning each of 1,500 barriers a token
# costs a system call. Eight thousand turns are a compromise
# (docs/decisions/0003 and 0010). Must be set before libgomp is loaded; a user's own choice wins.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "8000")


def _import_llama_cpp() -> Any:
    try:
        version = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError as error:
        raise EngineVersionError(f"llama-cpp-python is not installed; {INSTALL}") from error
    if version not in TESTED_VERSIONS:
        raise EngineVersionError(
            f"llama-cpp-python {version} was not tested with localmoe (tested: "
            f"{', '.join(TESTED_VERSIONS)}); {INSTALL}"
        )
    return _low_level_module()


def _low_level_module() -> Any:
    """Import llama-cpp-python's bindings without its own engine.

    The package's `__init__` imports that too, with chat formats and grammars: twice the time that
    everything else takes. Who imports the package itself, before or later, gets all of it.
    """
    name = "llama_cpp"
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is not None:
        sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        return importlib.import_module("llama_cpp.llama_cpp")
    finally:
        if spec is not None:
            del sys.modules[name]


L = _import_llama_cpp()
_LIB_FOLDER = Path(L.__file__).parent / "lib"


def shared_library(stem: str) -> C.CDLL:
    """Load one of llama-cpp-python's own libraries. Raises EngineError where it is missing."""
    for name in (f"lib{stem}.so", f"lib{stem}.dylib", f"{stem}.dll"):
        path = _LIB_FOLDER / name
        if path.exists():
            return C.CDLL(str(path))
    raise EngineError(f"llama-cpp-python has no {stem} library in {_LIB_FOLDER}; reinstall it")


_base, _ggml = shared_library("ggml-base"), shared_library("ggml")


class Tensor(C.Structure):
    """struct ggml_tensor. `ne` elements and `nb` byte strides per dimension, innermost first."""


Tensor._fields_ = [
    ("type", C.c_int),
    ("buffer", C.c_void_p),
    ("ne", C.c_int64 * 4),
    ("nb", C.c_size_t * 4),
    ("op", C.c_int),
    ("op_params", C.c_int32 * 16),
    ("flags", C.c_int32),
    ("src", C.c_void_p * 10),
    ("view_src", C.c_void_p),
    ("view_offs", C.c_size_t),
    ("data", C.c_void_p),
    ("name", C.c_char * MAX_NAME_NBYTES),
    ("extra", C.c_void_p),
    ("padding", C.c_char * 8),
]
OP_OFFSET = Tensor.op.offset
NAME_OFFSET = Tensor.name.offset
DATA_OFFSET = Tensor.data.offset
SRC_OFFSET = Tensor.src.offset
POINTER_NBYTES = C.sizeof(C.c_void_p)

GET_NAME = C.CFUNCTYPE(C.c_void_p, C.c_void_p)
ALLOC_BUFFER = C.CFUNCTYPE(C.c_void_p, C.c_void_p, C.c_size_t)
GET_SIZE = C.CFUNCTYPE(C.c_size_t, C.c_void_p)
GET_ALLOC_SIZE = C.CFUNCTYPE(C.c_size_t, C.c_void_p, C.c_void_p)
IS_HOST = C.CFUNCTYPE(C.c_bool, C.c_void_p)
SET_TENSOR = C.CFUNCTYPE(None, C.c_void_p, C.c_void_p, C.c_void_p, C.c_size_t, C.c_size_t)


class BufferType(C.Structure):
    """struct ggml_backend_buffer_type: how an engine is told to allocate weights."""

    _fields_ = [
        ("get_name", GET_NAME),
        ("alloc_buffer", ALLOC_BUFFER),
        ("get_alignment", GET_SIZE),
        ("get_max_size", GET_SIZE),
        ("get_alloc_size", GET_ALLOC_SIZE),
        ("is_host", IS_HOST),
        ("device", C.c_void_p),
        ("context", C.c_void_p),
    ]


class Buffer(C.Structure):
    """struct ggml_backend_buffer; of its eleven functions only `set_tensor` is replaced."""

    _fields_ = [
        ("free_buffer", C.c_void_p),
        ("get_base", C.c_void_p),
        ("init_tensor", C.c_void_p),
        ("memset_tensor", C.c_void_p),
        ("set_tensor", C.c_void_p),
        ("other_functions", C.c_void_p * 6),
        ("buft", C.c_void_p),
        ("context", C.c_void_p),
        ("size", C.c_size_t),
        ("usage", C.c_int),
    ]


class BufferOverride(C.Structure):
    """struct llama_model_tensor_buft_override: a regular expression over tensor names."""

    _fields_ = [("pattern", C.c_char_p), ("buft", C.c_void_p)]


def declare(library: C.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    """Return a library's function with its types."""
    function = getattr(library, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


buffer_from_pointer = declare(
    _base, "ggml_backend_cpu_buffer_from_ptr", C.c_void_p, C.c_void_p, C.c_size_t
)
buffer_free = declare(_base, "ggml_backend_buffer_free", None, C.c_void_p)
buffer_type_of = declare(_base, "ggml_backend_buffer_get_type", C.c_void_p, C.c_void_p)
_buffer_base = declare(_base, "ggml_backend_buffer_get_base", C.c_void_p, C.c_void_p)
_buffer_size = declare(_base, "ggml_backend_buffer_get_size", C.c_size_t, C.c_void_p)
_buft_name = declare(_base, "ggml_backend_buft_name", C.c_char_p, C.c_void_p)
_buft_alignment = declare(_base, "ggml_backend_buft_get_alignment", C.c_size_t, C.c_void_p)
_buft_alloc_size = declare(
    _base, "ggml_backend_buft_get_alloc_size", C.c_size_t, C.c_void_p, C.c_void_p
)
_buft_is_host = declare(_base, "ggml_backend_buft_is_host", C.c_bool, C.c_void_p)
_buft_device = declare(_base, "ggml_backend_buft_get_device", C.c_void_p, C.c_void_p)
_tensor_set = declare(
    _base, "ggml_backend_tensor_set", None, C.c_void_p, C.c_void_p, C.c_size_t, C.c_size_t
)
_op_name = declare(_base, "ggml_op_name", C.c_char_p, C.c_int)
_get_name = declare(_base, "ggml_get_name", C.c_char_p, C.c_void_p)
_set_name = declare(_base, "ggml_set_name", C.c_void_p, C.c_void_p, C.c_char_p)
_nbytes = declare(_base, "ggml_nbytes", C.c_size_t, C.c_void_p)
_get_data = declare(_base, "ggml_get_data", C.c_void_p, C.c_void_p)
_tensor_overhead = declare(_base, "ggml_tensor_overhead", C.c_size_t)
_new_tensor = declare(
    _base, "ggml_new_tensor", C.c_void_p, C.c_void_p, C.c_int, C.c_int, C.POINTER(C.c_int64)
)
_mul_mat_id = declare(
    _base, "ggml_mul_mat_id", C.c_void_p, C.c_void_p, C.c_void_p, C.c_void_p, C.c_void_p
)
_view_1d = declare(_base, "ggml_view_1d", C.c_void_p, C.c_void_p, C.c_void_p, C.c_int64, C.c_size_t)
ggml_free = declare(_base, "ggml_free", None, C.c_void_p)
_device_by_type = declare(_ggml, "ggml_backend_dev_by_type", C.c_void_p, C.c_int)


class InitParams(C.Structure):
    """struct ggml_init_params."""

    _fields_ = [("mem_size", C.c_size_t), ("mem_buffer", C.c_void_p), ("no_alloc", C.c_bool)]


ggml_init = declare(_base, "ggml_init", C.c_void_p, InitParams)


def cpu_device() -> int:
    """Return ggml's CPU device."""
    return int(_device_by_type(0))


def op_number(name: str) -> int:
    """Return the number of a graph operation, asked of the library by its name."""
    for number in range(256):
        found = _op_name(number)
        if found == name.encode():
            return number
    raise EngineVersionError(f"this llama.cpp has no operation {name}")


class _Proof:
    """Collects disagreements between this module and the library."""

    def __init__(self) -> None:
        self.wrong: list[str] = []

    def equal(self, what: str, ours: object, theirs: object) -> None:
        if ours != theirs:
            self.wrong.append(f"{what} (here {ours!r}, library {theirs!r})")


def _prove_tensor(proof: _Proof) -> None:
    """Build a tiny graph and compare every field that is read or written later."""
    context = ggml_init(InitParams(1 << 20, None, True))
    weights = _new_tensor(context, TYPE_F32, 3, (C.c_int64 * 3)(32, 5, 7))
    tokens = _new_tensor(context, TYPE_F32, 3, (C.c_int64 * 3)(32, 1, 3))
    ids = _new_tensor(context, TYPE_I32, 2, (C.c_int64 * 2)(2, 3))
    product = _mul_mat_id(context, weights, tokens, ids)
    view = _view_1d(context, weights, 8, 64)
    _set_name(product, b"proof-of-name")
    w, p, v = (Tensor.from_address(address) for address in (weights, product, view))
    proof.equal("tensor.ne", list(w.ne), [32, 5, 7, 1])
    proof.equal("tensor.nb", list(w.nb), [4, 128, 640, 4480])
    proof.equal("ggml_nbytes", w.nb[2] * w.ne[2], _nbytes(weights))
    proof.equal("tensor.op", _op_name(p.op), b"MUL_MAT_ID")
    proof.equal("tensor.src", list(p.src[:3]), [weights, tokens, ids])
    proof.equal("tensor.name", p.name, _get_name(product))
    proof.equal("tensor.view_src", v.view_src, weights)
    proof.equal("tensor.view_offs", v.view_offs, 64)
    w.data = 0x1234000
    proof.equal("tensor.data", w.data, _get_data(weights))
    object_nbytes = _tensor_overhead() - C.sizeof(Tensor)
    proof.equal("sizeof(ggml_tensor)", 0 < object_nbytes <= 64, True)
    proof.equal("distance of tensors", (tokens - weights) % 8, 0)
    ggml_free(context)


def _prove_buffers(proof: _Proof) -> None:
    """Compare the buffer structures, and see our `set_tensor` really called."""
    seen: list[int] = []
    label = C.create_string_buffer(b"proof")
    record = SET_TENSOR(lambda _buffer, _tensor, _data, offset, size: seen.extend((offset, size)))
    buft = BufferType(
        GET_NAME(lambda _: C.addressof(label)),
        ALLOC_BUFFER(),
        GET_SIZE(lambda _: 128),
        GET_SIZE(),
        GET_ALLOC_SIZE(lambda _buft, _tensor: 777),
        IS_HOST(lambda _: True),
        cpu_device(),
        None,
    )
    where = C.addressof(buft)
    proof.equal("buffer type name", _buft_name(where), b"proof")
    proof.equal("buffer type alignment", _buft_alignment(where), 128)
    proof.equal("buffer type is_host", _buft_is_host(where), True)
    proof.equal("buffer type device", _buft_device(where), cpu_device())
    room = C.create_string_buffer(4096 + 64)
    start = (C.addressof(room) + 63) // 64 * 64
    address = buffer_from_pointer(start, 4096)
    buffer = Buffer.from_address(address)
    proof.equal("buffer.context", buffer.context, _buffer_base(address))
    proof.equal("buffer.size", buffer.size, _buffer_size(address))
    proof.equal("buffer.buft", buffer.buft, buffer_type_of(address))
    buffer.set_tensor = C.cast(record, C.c_void_p).value
    buffer.buft = where
    proof.equal("buffer.buft, written", buffer_type_of(address), where)
    tensor = Tensor(type=0, buffer=address, data=start)
    tensor.ne[:], tensor.nb[:] = [16, 1, 1, 1], [4, 64, 64, 64]
    proof.equal("buffer type alloc size", _buft_alloc_size(where, C.addressof(tensor)), 777)
    _tensor_set(C.addressof(tensor), start, 4, 8)
    proof.equal("buffer.set_tensor", seen, [4, 8])
    buffer_free(address)


def _prove_parameters(proof: _Proof) -> None:
    """The parameter structures are llama-cpp-python's own; look at both of their ends."""
    model = L.llama_model_default_params()
    proof.equal("model params", (model.n_gpu_layers, bool(model.no_alloc)), (-1, False))
    proof.equal("model params use_extra_bufts", bool(model.use_extra_bufts), True)
    context = L.llama_context_default_params()
    proof.equal("context params", (context.n_ctx, context.n_seq_max), (512, 1))
    proof.equal("context params cb_eval", bool(context.cb_eval), False)
    proof.equal("context params op_offload", bool(context.op_offload), True)


def _prove() -> None:
    """Raise EngineVersionError at the first disagreement: what comes later relies on it."""
    for step in (_prove_tensor, _prove_buffers, _prove_parameters):
        proof = _Proof()
        step(proof)
        if proof.wrong:
            raise EngineVersionError(
                "the llama.cpp library does not have the layout that localmoe knows: "
                + "; ".join(proof.wrong)
                + f". Reinstall llama-cpp-python=={TESTED_VERSIONS[-1]}."
            )


_prove()
OP_MUL_MAT_ID, OP_ADD_ID = op_number("MUL_MAT_ID"), op_number("ADD_ID")
OP_GET_ROWS, OP_CPY = op_number("GET_ROWS"), op_number("CPY")
OP_NONE, OP_FLASH_ATTN = op_number("NONE"), op_number("FLASH_ATTN_EXT")
