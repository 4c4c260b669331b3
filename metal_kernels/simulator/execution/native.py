"""The runtime library through ctypes: runtime/launch.h says what the fields mean."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..compilation.clang import CompileError
from ..compilation.ir import variable_name
from ..compilation.libraries import Library, runtime_library
from ..report import Buffer, Finding, Note, Report, Traffic

# As runtime/launch.h numbers them.
KINDS = (
    "out-of-bounds",
    "write-to-input",
    "uninitialised-read",
    "uninitialised-local",
    "unwritten-output",
    "race-read-after-write",
    "race-write-after-write",
    "race-write-after-read",
    "race-same-value",
    "simd-lockstep",
    "barrier-divergence",
    "barrier-after-exit",
    "simdgroup-barrier-divergence",
    "simd-partial",
    "simd-divergent",
    "bad-shuffle",
    "local-out-of-bounds",
    "misaligned",
    "index-wrap",
    "half-overflow",
    "nan-made",
    "nan-compared",
    "float-to-int",
    "undefined-behaviour",
    "wild-pointer",
    "memory-fault",
    "timeout",
    "threadgroup-memory",
)
BUFFER_KINDS = ("input", "output", "threadgroup", "constant")
ORDERS = ("forward", "reverse", "random")
REDUCE_ORDERS = ("ascending", "descending", "sequential")

_MAX_FINDINGS = 64
_MAP = (64, 256)  # kMapRows, kMapColumns
_NO_THREAD = 0xFFFFFFFF

_u32, _u64, _i32, _i64 = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int32, ctypes.c_int64


def _fields(*groups: tuple[type, str]) -> list[tuple[str, type]]:
    return [(name, kind) for kind, names in groups for name in names.split()]


class _Traffic(ctypes.Structure):
    _fields_ = _fields((_u64, "count bytes sector_bytes threadgroup_bytes unique_bytes"))


class _Buffer(ctypes.Structure):
    _fields_ = _fields(
        (ctypes.c_void_p, "base"),
        (_u64, "size"),
        (_u32, "item_size kind initialised padding"),
        (ctypes.c_char_p, "name"),
        (_Traffic, "loads stores"),
        (_u64, "unwritten_bytes"),
        (ctypes.c_void_p, "map"),
    )


class _Config(ctypes.Structure):
    _fields_ = _fields(
        (_u32 * 3, "grid threadgroup"),
        (_u32, "order seed reduce_order yield_at_memory flush_denormals timeout_ms stack_bytes"),
        (_u32, "waits checked traces debugs"),
        (_u32 * 3, "traced"),
        (_u32, "workers"),
    )


class _Finding(ctypes.Structure):
    _fields_ = _fields(
        (_i32, "kind line column other_line"),
        (_u32 * 3, "threadgroup"),
        (_u32, "thread other_thread padding"),
        (_u64, "count"),
        (_i64, "offset"),
        (ctypes.c_char * 64, "file"),
        (ctypes.c_char * 48, "buffer"),
        (ctypes.c_char * 160, "message"),
    )


class _Result(ctypes.Structure):
    _fields_ = _fields(
        (_u32, "findings stopped depends padding"),
        (
            _u64,
            "threads threadgroups barriers simd_operations atomics threadgroup_memory",
        ),
    )


@cache
def _kernel(path: Path) -> ctypes.CDLL:
    """A kernel's library. Its symbols are its own: others have functions of the same names."""
    try:
        return ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL)
    except OSError as error:
        missing = str(error).rpartition(": ")[2]
        raise CompileError(f"a function is called but nowhere defined: {missing}") from None


@cache
def _runtime() -> ctypes.CDLL:
    """The runtime, whose functions the kernels' libraries find."""
    runtime = ctypes.CDLL(str(runtime_library()), mode=ctypes.RTLD_GLOBAL)
    _check_layout(runtime)
    runtime.msl_allocate.restype = ctypes.c_void_p
    runtime.msl_allocate.argtypes = [
        _u64,
        ctypes.POINTER(ctypes.c_void_p),
        ctypes.POINTER(_u64),
    ]
    runtime.msl_log_text.restype = ctypes.c_void_p
    runtime.msl_log_text.argtypes = [ctypes.POINTER(_u64)]
    runtime.msl_free.argtypes = [ctypes.c_void_p, _u64]
    return runtime


def _check_layout(runtime: ctypes.CDLL) -> None:
    """Raise ImportError unless the library's structures are those of this module."""
    structures = (_Traffic, _Buffer, _Config, _Finding, _Result)
    expected = [*map(ctypes.sizeof, structures), len(KINDS)]
    found = list((_u32 * len(expected)).in_dll(runtime, "msl_layout"))
    if found != expected:
        raise ImportError(f"runtime/launch.h declares {found}; native.py mirrors {expected}")


@dataclass
class Memory:
    """Bytes of a buffer, between redzones.

    Attributes:
        name: The name of the parameter.
        kind: Either "input" or "output".
        item_size: The bytes of an element, which is the grain of races and traffic.
        bytes: The memory as an array of uint8.
        address: The address of its first byte.
        initialised: Whether it may be read before the kernel writes it.
    """

    name: str
    kind: str
    item_size: int
    bytes: np.ndarray
    address: int
    initialised: bool


class Allocator:
    """Memory for one launch."""

    def __init__(self):
        self.memories: list[Memory] = []
        self._blocks: list[tuple[int, int]] = []

    def allocate(
        self, name: str, kind: str, size: int, item_size: int, initialised: bool
    ) -> Memory:
        """Memory of `size` bytes."""
        block, block_size = ctypes.c_void_p(), _u64()
        address = _runtime().msl_allocate(size, ctypes.byref(block), ctypes.byref(block_size))
        if not address:
            raise MemoryError(f"no memory for {name}: {size} bytes")
        self._blocks.append((block.value or 0, block_size.value))
        raw = (ctypes.c_uint8 * size).from_address(address)
        content = np.frombuffer(cast(Any, raw), np.uint8) if size else np.zeros(0, np.uint8)
        memory = Memory(name, kind, item_size, content, address, initialised)
        self.memories.append(memory)
        return memory

    def free(self) -> None:
        """Give all of it back; no array over it may be used any more."""
        self.memories.clear()
        for block in self._blocks:
            _runtime().msl_free(*block)
        self._blocks.clear()


@contextmanager
def allocator() -> Iterator[Allocator]:
    """An allocator whose memory lives as long as the block."""
    memory = Allocator()
    try:
        yield memory
    finally:
        memory.free()


def run(
    name: str,
    library: Library,
    memories: Sequence[Memory],
    grid: Sequence[int],
    threadgroup: Sequence[int],
    traced: Sequence[int],
    maps: bool,
    **config: int,
) -> Report | None:
    """Run one launch of a compiled kernel.

    None if several workers shared the launch and found something: the order of the threadgroups
    may then make a difference, and it has to be run again, from the beginning, by one.

    Args:
        name: the name of the kernel, for the report.
        library: the compiled kernel.
        memories: what its buffer parameters point to, in order.
        grid, threadgroup: three numbers each.
        traced: the position in the grid of the thread to trace or to debug, if one is.
        maps: whether to count what every part of a buffer is asked for.
        config: fields of msl_config.
    """
    runtime, kernel = _runtime(), _kernel(library.path)
    buffers = [
        _Buffer(
            base=memory.address,
            size=len(memory.bytes),
            item_size=memory.item_size,
            kind=BUFFER_KINDS.index(memory.kind),
            initialised=memory.initialised,
            name=memory.name.encode(),
        )
        for memory in memories
    ]
    variables = [(v, "threadgroup") for v in library.threadgroup]
    variables += [(v, "constant") for v in library.constants]
    addresses = (ctypes.c_void_p * (len(variables) + 1)).in_dll(kernel, "msl_variables")
    buffers += [
        _Buffer(
            base=address,
            size=variable.size,
            item_size=variable.item_size,
            kind=BUFFER_KINDS.index(kind),
            initialised=kind == "constant",
            name=variable_name(variable.symbol).encode(),
        )
        for (variable, kind), address in zip(variables, addresses, strict=False)
    ]
    counts = [np.zeros((2, *_MAP), np.uint32) for _ in buffers] if maps else []
    for buffer, count in zip(buffers, counts, strict=False):
        buffer.map = count.ctypes.data
    table = (_Buffer * len(buffers))(*buffers)
    arguments = (ctypes.c_void_p * len(memories))(*(m.address for m in memories))
    settings = _Config(
        grid=(_u32 * 3)(*grid),
        threadgroup=(_u32 * 3)(*threadgroup),
        waits=library.waits,
        traced=(_u32 * 3)(*traced),
        **config,
    )
    result, findings = _Result(), (_Finding * _MAX_FINDINGS)()
    runtime.msl_run(
        ctypes.cast(kernel.msl_entry, ctypes.c_void_p),
        arguments,
        table,
        _u32(len(buffers)),
        ctypes.byref(ctypes.c_char.in_dll(kernel, "msl_sites")),
        ctypes.byref(settings),
        ctypes.byref(result),
        findings,
        _u32(_MAX_FINDINGS),
    )
    if result.depends:
        return None
    notes = list(_notes(runtime))
    return Report(
        name=name,
        findings=[_finding(f) for f in findings[: result.findings]],
        buffers={
            buffer.name.decode(): _buffer(buffer, count)
            for buffer, count in itertools.zip_longest(table, counts)
        },
        threads=result.threads,
        threadgroups=result.threadgroups,
        barriers=result.barriers,
        simd_operations=result.simd_operations,
        atomics=result.atomics,
        threadgroup_memory=result.threadgroup_memory,
        logged=[note for tag, note in notes if tag == "L"],
        steps=[note for tag, note in notes if tag == "T"],
    )


def _notes(runtime: ctypes.CDLL) -> Iterator[tuple[str, Note]]:
    """What was logged, "L", and traced, "T", in the last launch; runtime/log.cpp writes it."""
    size = _u64()
    address = runtime.msl_log_text(ctypes.byref(size))
    text = ctypes.string_at(address, size.value).decode(errors="replace") if size.value else ""
    for record in text.split("\x1e")[:-1]:
        tag, x, y, z, file, line, words = record.split("\x1f", 6)
        yield tag, Note((int(x), int(y), int(z)), file, int(line), words)


def _finding(found: _Finding) -> Finding:
    return Finding(
        kind=KINDS[found.kind],
        message=found.message.decode(),
        file=found.file.decode(),
        line=found.line,
        column=found.column,
        buffer=found.buffer.decode(),
        offset=found.offset,
        thread=None if found.thread == _NO_THREAD else found.thread,
        threadgroup=tuple(found.threadgroup),
        other_thread=None if found.other_thread == _NO_THREAD else found.other_thread,
        other_line=found.other_line,
        count=found.count,
    )


def _buffer(buffer: _Buffer, counts: np.ndarray | None) -> Buffer:
    return Buffer(
        kind=BUFFER_KINDS[buffer.kind],
        size=buffer.size,
        loads=_traffic(buffer.loads),
        stores=_traffic(buffer.stores),
        unwritten_bytes=buffer.unwritten_bytes,
        map=counts,
    )


def _traffic(traffic: _Traffic) -> Traffic:
    return Traffic(**{field[0]: getattr(traffic, field[0]) for field in _Traffic._fields_})
