"""Arrays as the bytes that a kernel sees, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import numpy as np

# Types that MLX takes from NumPy as they are; others are bytes until MLX has them.
_NUMPY = {
    **{mx.float32: np.float32, mx.float16: np.float16},
    **{mx.int8: np.int8, mx.int16: np.int16, mx.int32: np.int32, mx.int64: np.int64},
    **{mx.uint8: np.uint8, mx.uint16: np.uint16, mx.uint32: np.uint32, mx.uint64: np.uint64},
}


@dataclass(frozen=True)
class HostArray:
    """An input: its elements with their layout; bfloat16 as 16-bit integers."""

    numbers: np.ndarray

    @property
    def shape(self) -> np.ndarray:
        return np.array(self.numbers.shape, np.int32)

    @property
    def strides(self) -> np.ndarray:
        """In elements."""
        return np.array([s // self.numbers.itemsize for s in self.numbers.strides], np.int64)

    @property
    def ndim(self) -> np.ndarray:
        return np.array([self.numbers.ndim], np.int32)

    @property
    def span(self) -> int:
        """Bytes from the first element to the end of the last one."""
        if not self.numbers.size:
            return 0
        pairs = zip(self.numbers.shape, self.numbers.strides, strict=True)
        return sum((size - 1) * stride for size, stride in pairs) + self.numbers.itemsize

    def write(self, memory: np.ndarray) -> None:
        """Put the elements into `span` bytes, in the array's layout."""
        if self.numbers.flags.c_contiguous:
            memory[:] = self.numbers.reshape(-1).view(np.uint8)
            return
        typed = memory[: self.span].view(self.numbers.dtype)
        placed = np.lib.stride_tricks.as_strided(typed, self.numbers.shape, self.numbers.strides)
        placed[...] = self.numbers


def as_mlx(value: Any) -> mx.array:
    """An input as MLX would take it: NumPy arrays and Python scalars become its arrays.

    Raises:
        ValueError: what MLX raises for a list.
    """
    if isinstance(value, mx.array):
        return value
    if isinstance(value, (list, tuple)):
        raise ValueError(f"Invalid type {type(value).__name__} received in array initialization.")
    return mx.array(value)


def host_array(array: mx.array, *, row_contiguous: bool) -> HostArray:
    """The elements of an MLX array.

    Args:
        array: an array of any dtype but complex.
        row_contiguous: whether to lay it out by rows; otherwise it keeps its strides.
    """
    numbers = _numbers(array)
    if row_contiguous:
        numbers = np.ascontiguousarray(numbers).reshape(array.shape)
    return HostArray(numbers)


def _numbers(array: mx.array) -> np.ndarray:
    if array.dtype != mx.bfloat16:
        return np.array(array, copy=False)
    if array.ndim == 0:
        return np.array(array.reshape(1).view(mx.uint16), copy=False).reshape(())
    numbers = np.array(array.view(mx.uint16), copy=False)
    # view() copies what is not contiguous: give the copy the strides of the array
    strides = memoryview(cast(Any, array)).strides or ()
    if numbers.strides != tuple(strides) and numbers.size:
        span = sum((n - 1) * s for n, s in zip(array.shape, strides, strict=True)) // 2 + 1
        placed = np.lib.stride_tricks.as_strided(np.zeros(span, np.uint16), array.shape, strides)
        placed[...] = numbers
        return placed
    return numbers


def filled(value: float, dtype: mx.Dtype, count: int) -> bytes:
    """`count` elements of one value, as bytes."""
    array = mx.full((count,), value, dtype)
    return host_array(array, row_contiguous=True).numbers.tobytes()


def from_bytes(memory: np.ndarray, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """An MLX array of what a kernel left in memory."""
    if typed := _NUMPY.get(dtype):
        return mx.array(memory.view(typed).reshape(shape))
    return mx.array(memory).view(dtype).reshape(shape)
