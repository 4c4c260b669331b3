"""Kernels with the interface of `mx.fast.metal_kernel`, executed by the simulator."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from . import disk_cache, native
from .arrays import as_mlx, filled, from_bytes, host_array
from .compiler import Library, find_compiler, kernel_library
from .lint import NOT_METAL, lint
from .report import Finding, Report
from .source import KernelSource, generated_source, read_source
from .translate import translate

# All kinds of findings: the runtime's and the lint's.
KINDS = frozenset({*native.KINDS, NOT_METAL})

# Those that raise unless told otherwise: not the ones that hardware handles as one hopes.
FATAL = KINDS - {"race-same-value", "simd-lockstep", "simd-partial", "simd-divergent"}

_MOST_THREADS = 1024
_STACK_BYTES = 64 * 1024

# The runtime has one launch at a time.
_lock = threading.Lock()


class SimulationError(RuntimeError):
    """A launch had a fatal finding; ``report`` tells everything about it."""

    def __init__(self, report: Report):
        super().__init__(f"\n{report}")
        self.report = report


@dataclass(frozen=True)
class Options:
    """How kernels are executed; see `options`."""

    order: str = "forward"
    seed: int = 0
    reduce_order: str = "ascending"
    fatal: frozenset[str] = FATAL
    yield_at_memory: bool = False
    flush_denormals: bool = False
    timeout: float = 60.0


_DEFAULTS = Options()
_options: ContextVar[Options] = ContextVar("options", default=_DEFAULTS)


@contextmanager
def options(**changes: Any) -> Iterator[None]:
    """Change how kernels are executed inside a ``with`` block.

    Args:
        order: "forward" (default), "reverse" or "random": of the threadgroups, the
            SIMD-groups of each and their lanes between two synchronisations.
        seed: the seed of the random order.
        reduce_order: the order of simd_sum and its like: "ascending" (default) or "descending"
            butterfly, or "sequential".
        fatal: kinds of findings that raise `SimulationError`; FATAL by default, () for none.
        yield_at_memory: in random order, switch threads at loads and stores as well.
        flush_denormals: treat denormal numbers as 0.
        timeout: seconds for a launch.

    Raises:
        ValueError: if a value is not one of those.
    """
    token = _options.set(_checked(replace(_options.get(), **_with_kinds(changes))))
    try:
        yield
    finally:
        _options.reset(token)


def _with_kinds(changes: dict[str, Any]) -> dict[str, Any]:
    if "fatal" in changes:
        kinds = frozenset(changes["fatal"])
        if unknown := kinds - KINDS:
            raise ValueError(f"no such kind of finding: {', '.join(sorted(unknown))}")
        return {**changes, "fatal": kinds}
    return changes


def _checked(chosen: Options) -> Options:
    for name, allowed in (
        ("order", native.ORDERS),
        ("reduce_order", native.REDUCE_ORDERS),
    ):
        if (value := getattr(chosen, name)) not in allowed:
            raise ValueError(f"{name} is {value!r}; allowed are {', '.join(allowed)}")
    return chosen


class Kernel:
    """A kernel as `metal_kernel` gives it.

    Attributes:
        definition: The arguments of `metal_kernel`.
        report: The report of the last launch; None before the first one.
    """

    def __init__(self, **definition: Any):
        self.definition = definition
        self.report: Report | None = None

    def __call__(
        self,
        *,
        inputs: Sequence[Any],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        template: Sequence[tuple[str, Any]] | None = None,
        init_value: float | None = None,
        verbose: bool = False,
        stream: Any = None,
    ) -> list[mx.array]:
        """Execute the kernel now; the arguments are those of MLX's kernels.

        Raises:
            SimulationError: if there is a finding of a fatal kind.
            CompileError: if the source does not compile.
            SimulatorUnavailable: if there is no compiler here.
            ValueError: for arguments that MLX refuses.
        """
        arrays = [as_mlx(x) for x in inputs]
        mx.eval(arrays)
        call = {
            "inputs": arrays,
            "output_shapes": output_shapes,
            "output_dtypes": output_dtypes,
            "grid": grid,
            "threadgroup": threadgroup,
            **({"template": template} if template else {}),
        }
        text = generated_source(self.definition, call)
        if verbose:
            print(f"Generated source code for `{self.definition['name']}`:\n```\n{text}\n```")
        if math.prod(threadgroup) > _MOST_THREADS:
            raise ValueError(
                f"threadgroup {tuple(threadgroup)} has {math.prod(threadgroup)} threads; "
                f"allowed are {_MOST_THREADS}"
            )
        math_mode = (self.definition["compile_options"] or {}).get("math_mode", "safe")
        source, library = _built(
            text, self.definition["name"], math_mode == "fast", find_compiler(), disk_cache.folder()
        )
        launch = _Launch(self.definition, source, library, arrays, output_shapes, output_dtypes)
        with _lock:
            outputs, report = launch.run(grid, threadgroup, init_value)
        report.findings[:0] = [
            *lint(self.definition["source"], self.definition["header"]),
            *(Finding(NOT_METAL, message, file, line) for file, line, message in library.rejected),
        ]
        self.report = report
        if report.kinds & _options.get().fatal:
            raise SimulationError(report)
        return outputs


@functools.cache
def _built(text: str, name: str, fast_math: bool, *_: object) -> tuple[KernelSource, Library]:
    """A source and its library. What else the library depends on is given to tell them apart."""
    source = read_source(text)
    return source, kernel_library(translate(source), name, fast_math=fast_math)


@dataclass
class _Launch:
    """One launch: the kernel's parameters and the arrays behind them."""

    definition: dict[str, Any]
    source: KernelSource
    library: Library
    inputs: list[mx.array]
    output_shapes: Sequence[Sequence[int]]
    output_dtypes: Sequence[mx.Dtype]

    def run(self, grid, threadgroup, init_value) -> tuple[list[mx.array], Report]:
        chosen = _options.get()
        with native.allocator() as allocator:
            self._allocate(allocator, init_value)
            report = native.run(
                self.definition["name"],
                self.library,
                allocator.memories,
                grid,
                threadgroup,
                order=native.ORDERS.index(chosen.order),
                seed=chosen.seed,
                reduce_order=native.REDUCE_ORDERS.index(chosen.reduce_order),
                yield_at_memory=chosen.yield_at_memory,
                flush_denormals=chosen.flush_denormals,
                timeout_ms=int(chosen.timeout * 1000),
                stack_bytes=_STACK_BYTES,
            )
            content = {m.name: m.bytes for m in allocator.memories if m.kind == "output"}
            outputs = [
                from_bytes(content[name], tuple(shape), dtype)
                for name, shape, dtype in zip(
                    self.definition["output_names"],
                    self.output_shapes,
                    self.output_dtypes,
                    strict=True,
                )
            ]
        return outputs, report

    def _allocate(self, allocator: native.Allocator, init_value: float | None) -> None:
        """Memory of every buffer parameter, in order."""
        contiguous = self.definition["ensure_row_contiguous"]
        hosts = {
            name: host_array(x, row_contiguous=contiguous)
            for name, x in zip(self.definition["input_names"], self.inputs, strict=True)
        }
        # input "x" comes with "x_shape", "x_strides" and "x_ndim" where its source names them
        metadata = {
            f"{name}_{what}": getattr(host, what)
            for name, host in hosts.items()
            for what in ("shape", "strides", "ndim")
        }
        outputs = {
            name: (math.prod(shape), dtype)
            for name, shape, dtype in zip(
                self.definition["output_names"], self.output_shapes, self.output_dtypes, strict=True
            )
        }
        for parameter in self.source.parameters:
            name = parameter.name
            if parameter.attribute != "buffer":
                continue
            if name in outputs:
                count, dtype = outputs[name]
                given = init_value is not None
                memory = allocator.allocate(name, "output", count * dtype.size, dtype.size, given)
                if given and count:
                    memory.bytes[:] = np.frombuffer(filled(init_value, dtype, count), np.uint8)
            elif name in hosts:
                host = hosts[name]
                size = host.numbers.itemsize
                memory = allocator.allocate(name, "input", host.span, size, True)
                host.write(memory.bytes)
            else:
                values = metadata[name]
                memory = allocator.allocate(name, "input", values.nbytes, values.itemsize, True)
                memory.bytes[:] = values.view(np.uint8)


def metal_kernel(
    name: str,
    input_names: Iterable[str],
    output_names: Iterable[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
    atomic_outputs: bool = False,
    compile_options: dict[str, Any] | None = None,
) -> Kernel:
    """`mx.fast.metal_kernel` on the CPU: same arguments, same way to call what it gives."""
    return Kernel(
        name=name,
        input_names=list(input_names),
        output_names=list(output_names),
        source=source,
        header=header,
        ensure_row_contiguous=ensure_row_contiguous,
        atomic_outputs=atomic_outputs,
        compile_options=compile_options,
    )


@contextmanager
def redirected() -> Iterator[None]:
    """`mx.fast.metal_kernel` makes simulated kernels inside a ``with`` block.

    MLX also says that a Metal GPU is there and the default device: what modules ask that
    make their kernels when they are imported.
    """
    saved = mx.fast.metal_kernel, mx.metal.is_available, mx.default_device
    mx.fast.metal_kernel = metal_kernel
    mx.metal.is_available = lambda: True
    mx.default_device = lambda: mx.Device(mx.gpu)
    try:
        yield
    finally:
        mx.fast.metal_kernel, mx.metal.is_available, mx.default_device = saved
