"""MLX's functions with the types that they have where this package calls them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

import mlx.core as mx
from mlx.utils import tree_flatten

_Function = TypeVar("_Function", bound=Callable[..., Any])


def mlx_version() -> str:
    """The version of MLX that is installed."""
    return version("mlx")


def number(x: mx.array) -> float:
    """The number in an array that holds one."""
    return cast(float, x.item())


def named_arrays(tree: Any) -> dict[str, mx.array]:
    """The arrays of a tree of parameters, by the names that checkpoints give them."""
    return cast(dict[str, mx.array], dict(tree_flatten(tree)))


def dtype_name(dtype: mx.Dtype) -> str:
    """A dtype as people write it: "float32"."""
    return str(dtype).removeprefix("mlx.core.")


def nbytes(tree: Any) -> int:
    """Bytes of all arrays in a tree of parameters, caches or optimizer state."""
    return sum(x.nbytes for x in named_arrays(tree).values() if isinstance(x, mx.array))


def load_arrays(path: Path) -> dict[str, mx.array]:
    """The arrays in a safetensors file, read when they are used.

    Raises:
        RuntimeError: what MLX raises for a file that is not whole.
    """
    return cast(dict[str, mx.array], mx.load(str(path)))


def load_arrays_and_metadata(path: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    """As `load_arrays`, with the texts in the file's header."""
    return cast(
        tuple[dict[str, mx.array], dict[str, str]], mx.load(str(path), return_metadata=True)
    )


def compiled(function: _Function, inputs: Any = None) -> _Function:
    """`mx.compile`; `inputs` is a tree of arrays that the function uses beside its arguments."""
    return cast(_Function, mx.compile(function, inputs=inputs))


def with_vjp(function: _Function, vjp: Callable[..., Any]) -> _Function:
    """A function of arrays with a gradient of its own.

    Args:
        function: arrays in, an array or several out.
        vjp: (primals, cotangents, outputs) -> one gradient per input.
    """
    made = mx.custom_function(function)
    made.vjp(vjp)
    return cast(_Function, made)
