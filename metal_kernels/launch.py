"""What runs a kernel: Metal, the simulator, or the kernel's reference op in `fm_mlx.ops`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from functools import cached_property
from typing import Any, cast

import mlx.core as mx

from fm_mlx.metal_kernels import verdicts
from fm_mlx.metal_kernels.sources import metal_source
from fm_mlx.support.arrays import with_vjp

# The environment variable that forces a backend for the whole process.
VARIABLE = "FM_MLX_KERNELS"


class Backend(StrEnum):
    """What runs a kernel."""

    METAL = "metal"
    SIMULATOR = "simulator"
    OPS = "ops"


_forced: ContextVar[Backend | None] = ContextVar("forced", default=None)

Arrays = Sequence[mx.array]


def backend() -> Backend:
    """What runs the kernels now, decided anew at every call.

    In this order: what `using` says, what the environment variable FM_MLX_KERNELS says,
    Metal if MLX's default device is a Metal GPU, else the ops form.

    Raises:
        ValueError: if the environment variable holds something else than a backend, or if
            what is asked for cannot run here.
    """
    chosen = _forced.get()
    if chosen is None and (named := os.environ.get(VARIABLE)):
        chosen = _backend(named, VARIABLE)
    on_metal = mx.default_device() == mx.Device(mx.gpu) and mx.metal.is_available()
    if chosen is None:
        return Backend.METAL if on_metal else Backend.OPS
    if chosen is Backend.METAL and not on_metal:
        raise ValueError(f"Metal kernels are asked for, but MLX runs on {mx.default_device()}")
    if chosen is Backend.SIMULATOR and (reason := _simulator().unavailable()):
        raise ValueError(reason)
    return chosen


def runs(file: str) -> bool:
    """Whether the kernels of a Metal file run now, by Metal or simulated.

    Otherwise their reference ops do: without a Metal GPU, or if `fm-mlx doctor` found one of
    the kernels wrong on this machine.
    """
    chosen = backend()
    if chosen is Backend.OPS:
        return False
    if file not in verdicts.switched_off(chosen):
        return True
    return verdicts.are_disregarded(file)


def on_cpu() -> bool:
    """Whether MLX's default device is the CPU, which some forms of an op suit better."""
    return mx.default_device() == mx.Device(mx.cpu)


@contextmanager
def using(name: Backend | str) -> Iterator[None]:
    """Run the kernels by one backend inside a ``with`` block.

    Raises:
        ValueError: if there is no such backend.
    """
    token = _forced.set(_backend(name, "the backend"))
    try:
        yield
    finally:
        _forced.reset(token)


def _simulator():
    # imported only where it is asked for: it never runs by itself
    from fm_mlx.metal_kernels import simulator

    return simulator


def _backend(name: str, where: str) -> Backend:
    try:
        return Backend(name)
    except ValueError:
        allowed = ", ".join(Backend)
        raise ValueError(f"{where} is {name!r}; allowed are {allowed}") from None


class MetalKernel:
    """One kernel, run by Metal or by the simulator.

    Args:
        name: The kernel's name; its Metal file is ``<file>.metal``.
        inputs: The names of the inputs in ``body``.
        outputs: The names of the outputs in ``body``.
        body: The Metal statements that call the file's function.
        file: The file that holds the function; ``name`` if not given.

    Attributes:
        launches: How often this process launched it.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        body: str,
        file: str | None = None,
    ):
        self.name = name
        self.inputs = inputs
        self.outputs = outputs
        self.body = body
        self.file = file or name
        self.launches = 0

    @cached_property
    def header(self) -> str:
        """The text of the Metal file."""
        return metal_source(f"{self.file}.metal")

    def __call__(self, **launch: Any) -> list[mx.array]:
        """Launch it, with the arguments of a kernel of `mx.fast.metal_kernel`."""
        self.launches += 1
        kernel = self.simulated if backend() is Backend.SIMULATOR else self._on_metal
        return kernel(**launch)

    @cached_property
    def simulated(self):
        """The kernel in the simulator; its ``report`` tells of the last launch."""
        return self._made_by(_simulator().metal_kernel)

    @cached_property
    def _on_metal(self) -> Callable[..., list[mx.array]]:
        return cast(Callable[..., list[mx.array]], self._made_by(mx.fast.metal_kernel))

    def _made_by(self, factory):
        # MLX may run stale code of the same name (ml-explore/mlx#3832)
        digest = hashlib.sha256((self.header + self.body).encode()).hexdigest()[:12]
        return factory(
            name=f"fm_{self.name}_{digest}",
            input_names=self.inputs,
            output_names=self.outputs,
            source=self.body,
            header=self.header,
        )


def differentiable(
    kernel: Callable[..., Arrays],
    reference: Callable[..., Arrays],
    gradient: Callable[[Arrays, Arrays], Arrays] | None = None,
) -> Callable[..., Arrays]:
    """Pair a kernel with its reference op: the kernel's results, and a gradient.

    Integer and boolean arrays have no gradient, neither as inputs nor as outputs.

    Args:
        kernel: Launches the kernel; arrays in, arrays out.
        reference: The reference op with the same inputs and outputs, which MLX differentiates.
        gradient: The gradients of all inputs from (inputs, cotangents), by a kernel of their
            own; None takes those of ``reference``.

    Returns:
        A function of the kernel's inputs, for `mx.grad` and `mx.vjp` as well.
    """

    def of_reference(primals: Arrays, cotangents: Arrays, outputs: Arrays) -> Arrays:
        smooth = [i for i, x in enumerate(primals) if _is_float(x)]
        kept = [i for i, x in enumerate(outputs) if _is_float(x)]

        def smooth_part(*chosen: mx.array) -> list[mx.array]:
            arrays = list(primals)
            for i, x in zip(smooth, chosen, strict=True):
                arrays[i] = x
            results = reference(*arrays)
            return [results[i] for i in kept]

        _, found = mx.vjp(smooth_part, [primals[i] for i in smooth], [cotangents[i] for i in kept])
        # one gradient per input: MLX counts them by position
        gradients = [mx.zeros_like(x) for x in primals]
        for i, x in zip(smooth, found, strict=True):
            gradients[i] = x
        return gradients

    def form(*arrays: mx.array) -> Arrays:
        return tuple(kernel(*arrays))

    def form_vjp(primals: Any, cotangents: Arrays, outputs: Arrays) -> Arrays:
        # MLX hands over a single input without its tuple
        primals = [primals] if isinstance(primals, mx.array) else primals
        if gradient is None:
            found = of_reference(primals, cotangents, outputs)
        else:
            found = gradient(primals, cotangents)
        return tuple(found)

    return with_vjp(form, form_vjp)


def _is_float(x: mx.array) -> bool:
    return mx.issubdtype(x.dtype, mx.floating)
