"""What MLX itself makes of a call of a custom kernel: the Metal source, and its errors.

Nothing is compiled or run: MLX traces the call, as for an export, and the trace holds the
text. That works without a GPU, and what MLX refuses is refused in its own words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx

from ..language.source import KernelSource, read_source

# MLX's own, also while `redirected` puts the simulator in its place.
_metal_kernel = mx.fast.metal_kernel

_FAST = 2

MlxKernel = Callable[..., list[mx.array]]


@dataclass(frozen=True)
class Trace:
    """A traced call.

    Attributes:
        text: The Metal source, with a signature for these inputs.
        metadata: For each input whether the kernel takes its shape, strides and dimensions.
        ensure_row_contiguous: What the kernel was made with.
        fast_math: Whether the kernel was made with the math mode "fast".
    """

    text: str
    metadata: tuple[tuple[bool, bool, bool], ...]
    ensure_row_contiguous: bool
    fast_math: bool


def mlx_kernel(definition: dict[str, Any]) -> MlxKernel:
    """The kernel that `mx.fast.metal_kernel` makes, which runs only where there is a GPU.

    Raises:
        ValueError: what MLX raises for a definition that it refuses.
        TypeError: likewise.
    """
    given = {name: value for name, value in definition.items() if value is not None}
    return cast(Any, _metal_kernel)(**given)


def is_mlx_kernel(value: Any) -> bool:
    """Whether a value is a kernel that `mx.fast.metal_kernel` has made."""
    if type(value) is not type(_metal_kernel):
        return False
    signature = (value.__doc__ or "").partition("\n")[0]
    return signature.startswith("__call__(self, *, inputs") and "shared_memory" not in signature


def trace(kernel: MlxKernel, call: dict[str, Any]) -> Trace:
    """Trace a call of one of MLX's kernels.

    Args:
        kernel: what `mlx_kernel` gives.
        call: the arguments; the inputs are MLX arrays.

    Raises:
        ValueError: what MLX raises for arguments that do not fit.
        TypeError: likewise.
    """

    def run(*inputs):
        return kernel(**{**call, "inputs": inputs})

    records: list[dict] = []
    mx.export_function(records.append, run, *call["inputs"])
    (record,) = (r for r in records if r.get("name") == "CustomKernel")
    _, text, *rest = record["arguments"]
    at = next(i for i, argument in enumerate(rest) if isinstance(argument, list))
    return Trace(text, tuple(rest[at]), rest[at + 1], rest[-1] == _FAST)


def definition_of(traced: Trace, inputs: list[mx.array]) -> dict[str, Any]:
    """The arguments that a kernel was made with, as far as a trace of a call tells them."""
    source = read_source(traced.text)
    names, outputs = _names(source, traced, inputs)
    return {
        "name": source.name.removeprefix("custom_kernel_"),
        "input_names": names,
        "output_names": outputs,
        "source": source.body.removeprefix("\n").rpartition("\n}")[0],
        "header": source.header,
        "ensure_row_contiguous": traced.ensure_row_contiguous,
        "atomic_outputs": any("atomic" in p.type for p in source.parameters),
        "compile_options": {"math_mode": "fast"} if traced.fast_math else None,
    }


def _names(
    source: KernelSource, traced: Trace, inputs: list[mx.array]
) -> tuple[list[str], list[str]]:
    """Names of the inputs and outputs: shapes and the like stand behind their input."""
    buffers = [p.name for p in source.parameters if p.attribute == "buffer"]
    names = []
    for array, metadata in zip(inputs, traced.metadata, strict=True):
        names.append(buffers.pop(0))
        if array.ndim:
            del buffers[: sum(metadata)]
    return names, buffers
