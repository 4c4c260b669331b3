"""A call of a kernel, compiled, with the memory that its launches have in common."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from ..compilation.instrument import CHECKED
from ..compilation.libraries import Library
from ..language.source import KernelSource
from ..mac.mlx_calls import Trace
from ..report import Report
from ..settings import Options
from . import native
from .arrays import HostArray, filled, from_bytes, host_array

_STACK_BYTES = 64 * 1024
_UNWRITTEN = 0xFF  # what native memory is filled with

# How many calls keep their memory, and how much each may keep.
_MOST_KEPT = 64
_MOST_BYTES = 1 << 20

# The runtime has one launch at a time.
_lock = threading.Lock()


@dataclass(eq=False)
class Launch:
    """Everything about a call but the values of the inputs.

    Attributes:
        trace: What MLX made of the call.
        source: The kernel's source in its parts.
        library: It compiled.
        definition: The arguments that the kernel was made with.
        outputs: The name, shape and dtype of every output.
    """

    trace: Trace
    source: KernelSource
    library: Library
    definition: dict[str, Any]
    outputs: list[tuple[str, tuple[int, ...], mx.Dtype]]
    _memory: native.Allocator = field(default_factory=native.Allocator)

    def run(
        self,
        inputs: Sequence[HostArray],
        grid: Sequence[int],
        threadgroup: Sequence[int],
        init_value: float | None,
        chosen: Options,
    ) -> tuple[list[mx.array], Report]:
        """Execute the kernel once."""
        with _lock:
            keep = False
            try:
                self._fill(inputs, init_value)
                workers = 1 if self._is_ordered(chosen) else chosen.workers
                report = self._execute(grid, threadgroup, chosen, workers)
                if report is None:
                    self._fill(inputs, init_value)
                    report = self._execute(grid, threadgroup, chosen, 1)
                assert report
                outputs = self._read()
                keep = not report.findings
            finally:
                self._keep(keep)
        return outputs, report

    def _is_ordered(self, chosen: Options) -> bool:
        """Whether its threadgroups have to run one after another."""
        looked_into = chosen.maps or chosen.debug is not None
        return self.library.is_ordered or chosen.order == "random" or looked_into

    def _execute(self, grid, threadgroup, chosen: Options, workers: int) -> Report | None:
        return native.run(
            self.definition["name"],
            self.library,
            self._memory.memories,
            grid,
            threadgroup,
            order=native.ORDERS.index(chosen.order),
            seed=chosen.seed,
            reduce_order=native.REDUCE_ORDERS.index(chosen.reduce_order),
            yield_at_memory=chosen.yield_at_memory,
            flush_denormals=chosen.flush_denormals,
            timeout_ms=int(chosen.timeout * 1000),
            stack_bytes=_STACK_BYTES,
            workers=workers,
            checked=chosen.mode in CHECKED,
            traces=chosen.trace is not None,
            maps=chosen.maps,
            debugs=chosen.debug is not None,
            traced=chosen.debug or chosen.trace or (0, 0, 0),
        )

    def _fill(self, inputs: Sequence[HostArray], init_value: float | None) -> None:
        """Put into the memory what a launch begins with."""
        if not self._memory.memories:
            self._allocate(inputs)
        memory = {m.name: m for m in self._memory.memories}
        for name, host in zip(self.definition["input_names"], inputs, strict=True):
            host.write(memory[name].bytes)
            for what in ("shape", "strides", "ndim"):
                if f"{name}_{what}" in memory:
                    memory[f"{name}_{what}"].bytes[:] = getattr(host, what).view(np.uint8)
        for name, shape, dtype in self.outputs:
            memory[name].initialised = init_value is not None
            if init_value is None:
                memory[name].bytes.fill(_UNWRITTEN)
            elif count := math.prod(shape):
                memory[name].bytes[:] = np.frombuffer(filled(init_value, dtype, count), np.uint8)

    def _allocate(self, inputs: Sequence[HostArray]) -> None:
        """Memory of every buffer parameter, in order."""
        sizes = {}
        for name, host in zip(self.definition["input_names"], inputs, strict=True):
            sizes[name] = ("input", host.span, host.numbers.itemsize)
            # input "x" comes with "x_shape", "x_strides" and "x_ndim" where its source names them
            for what in ("shape", "strides", "ndim"):
                values = getattr(host, what)
                sizes.setdefault(f"{name}_{what}", ("input", values.nbytes, values.itemsize))
        for name, shape, dtype in self.outputs:
            sizes[name] = ("output", math.prod(shape) * dtype.size, dtype.size)
        for parameter in self.source.parameters:
            if parameter.attribute == "buffer":
                kind, size, item_size = sizes[parameter.name]
                self._memory.allocate(parameter.name, kind, size, item_size, True)

    def _read(self) -> list[mx.array]:
        content = {m.name: m.bytes for m in self._memory.memories}
        return [from_bytes(content[name], shape, dtype) for name, shape, dtype in self.outputs]

    def _keep(self, keep: bool) -> None:
        """Keep the memory for the next launch, or give it back.

        Small memory costs more to get and to fill than a small launch takes. What a launch with
        findings has stored around its buffers must not be seen by the next one.
        """
        small = sum(m.bytes.nbytes for m in self._memory.memories) <= _MOST_BYTES
        if not (keep and small):
            _kept.pop(self, None)
            self._memory.free()
            return
        _kept[self] = None
        _kept.move_to_end(self)
        while len(_kept) > _MOST_KEPT:
            _kept.popitem(last=False)[0]._memory.free()


# The launches that keep their memory, the last one used at the end.
_kept: OrderedDict[Launch, None] = OrderedDict()


def hosts(definition: dict[str, Any], inputs: Sequence[mx.array]) -> list[HostArray]:
    """The inputs as the kernel gets them: by rows, or as they are if it asked for that."""
    rows = definition["ensure_row_contiguous"]
    return [host_array(array, row_contiguous=rows) for array in inputs]
