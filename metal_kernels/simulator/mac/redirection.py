"""MLX as on a Mac: its GPU is there, and its kernels are simulated."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import CellType, ModuleType
from typing import Any

import mlx.core as mx

from .. import kernel
from ..kernel import Kernel
from . import devices, transforms
from .chips import DEFAULT_CHIP, chip_named
from .mlx_calls import is_mlx_kernel

_PACKAGE = __name__.rsplit(".", 2)[0]

_enable_compile, _disable_compile = mx.enable_compile, mx.disable_compile

# Whether kernels raise, of each block of `redirected` that is open.
_open: list[bool] = []


class MacKernel(Kernel):
    """A kernel that MLX makes on the pretended Mac."""

    def __call__(self, *, stream: Any = None, **call: Any) -> list[mx.array]:
        if _open and devices.device_of(stream) != devices.GPU:
            raise ValueError("[metal_kernel] Only supports the GPU.")
        return super().__call__(**call)


@functools.wraps(kernel.metal_kernel)
def metal_kernel(*arguments: Any, **named: Any) -> Kernel:
    made = kernel.metal_kernel(*arguments, **named)
    return MacKernel(made.mlx, made.definition, made.made_at, not _open or _open[-1])


@contextmanager
def redirected(*, chip: str = DEFAULT_CHIP, raises: bool = True) -> Iterator[None]:
    """MLX is as on a Mac inside a ``with`` block: `mx.fast.metal_kernel` makes simulated kernels.

    MLX says that a Metal GPU is there, which is the default device, and takes work for it, which
    the CPU does. `mx.compile` does not compile, because a simulated kernel needs values.
    Modules that have imported such functions by name before get the pretended ones as well.

    Args:
        chip: the name of the chip that `mx.device_info` describes, one of "m1", "m1-max", "m2",
            "m2-ultra", "m3", "m3-ultra", "m4", "m4-pro", "m4-max", "m5", "m5-max".
        raises: whether a fatal finding of a kernel made here raises `SimulationError`;
            otherwise only `listen` and the kernel's ``report`` tell of it.

    Raises:
        ValueError: if there is no such chip.
    """
    new = {
        **devices.replacements(chip_named(chip)),
        (mx.fast, "metal_kernel"): metal_kernel,
        (mx, "enable_compile"): lambda: None,
        (mx, "disable_compile"): lambda: None,
    }
    compiles = transforms.compiles()
    changes = [(owner, name, getattr(owner, name), value) for (owner, name), value in new.items()]
    changes += _imported_elsewhere({id(old): value for _, _, old, value in changes})
    for owner, name, _, value in changes:
        setattr(owner, name, value)
    _open.append(raises)
    _disable_compile()
    try:
        with devices.fresh():
            yield
    finally:
        _open.pop()
        for owner, name, old, _ in changes:
            setattr(owner, name, old)
        if compiles:
            _enable_compile()


def _imported_elsewhere(new: dict[int, Any]) -> list[tuple[Any, str, Any, Any]]:
    """Where modules hold a function that has something to stand in its place, by its id."""
    own = {mx.__name__, *(each.__name__ for each in (mx.fast, mx.random, mx.linalg, mx.fft))}
    found = []
    for module_name, module in list(sys.modules.items()):
        if module_name in own or not isinstance(module, ModuleType):
            continue
        if module_name.startswith(_PACKAGE):
            continue
        for name, value in list(vars(module).items()):
            if id(value) in new:
                found.append((module, name, value, new[id(value)]))
    return found


def adopt() -> int:
    """Simulate the kernels that MLX's own `metal_kernel` has made before; how many there are.

    They are replaced wherever a name, an attribute, a list, a dictionary or a closure holds them.
    """
    objects = gc.get_objects()
    simulated = {id(each.mlx) for each in objects if type(each) in (Kernel, MacKernel)}
    kernels = [each for each in objects if is_mlx_kernel(each) and id(each) not in simulated]
    if not kernels:
        return 0
    raises = not _open or _open[-1]
    new = {id(each): MacKernel(each, None, raises=raises) for each in kernels}
    for each in objects:
        if issubclass(type(each), type):
            for name, value in list(vars(each).items()):
                if id(value) in new:
                    setattr(each, name, new[id(value)])
    # neither what was found here nor what asks MLX for the source
    own = {id(objects), id(kernels), *(id(vars(each)) for each in new.values())}
    for holder in gc.get_referrers(*kernels):
        if id(holder) not in own:
            _replace(holder, new)
    return len(kernels)


def _replace(holder: Any, new: dict[int, Any]) -> None:
    if isinstance(holder, dict):
        for key, value in list(holder.items()):
            holder[key] = new.get(id(value), value)
    elif isinstance(holder, list):
        holder[:] = [new.get(id(value), value) for value in holder]
    elif isinstance(holder, CellType):
        holder.cell_contents = new.get(id(holder.cell_contents), holder.cell_contents)
