"""A GPU that MLX seems to have: its device and its streams, whose work the CPU does.

A stream of this GPU is a stream of MLX's CPU that is remembered as the GPU's. It executes what
is put on it like any other, so only what MLX says about it differs.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import mlx.core as mx

from .chips import Chip

GPU, CPU = mx.Device(mx.gpu), mx.Device(mx.cpu)

# MLX's own.
_device_of = {kind: kind.device for kind in (mx.Stream, mx.ThreadLocalStream)}
_text_of = {kind: kind.__repr__ for kind in (mx.Stream, mx.ThreadLocalStream)}
_StreamContext = mx.StreamContext
_new_stream, _default_stream = mx.new_stream, mx.default_stream
_new_thread_local_stream = mx.new_thread_local_stream
_new_thread_unsafe_stream = mx.new_thread_unsafe_stream
_set_default_stream, _synchronize = mx.set_default_stream, mx.synchronize
_is_available, _device_count, _device_info = mx.is_available, mx.device_count, mx.device_info

_gpu_streams: set[Any] = set()


class _Thread(threading.local):
    """What holds in one thread: the device of its `mx.stream` block, the GPU's default stream."""

    device: mx.Device | None = None
    stream: Any = None


_thread = _Thread()
_default = GPU


@contextmanager
def fresh() -> Iterator[None]:
    """Inside a ``with`` block the GPU is the default device, until something is said."""
    global _default
    before = (_default, _thread.device, _thread.stream)
    _default, _thread.device, _thread.stream = GPU, None, None
    try:
        yield
    finally:
        _default, _thread.device, _thread.stream = before


def device_of(place: Any) -> mx.Device:
    """The device of what MLX takes for ``stream=``."""
    if place is None:
        return default_device()
    if isinstance(place, mx.DeviceType):
        return mx.Device(place)
    return place if isinstance(place, mx.Device) else _stream_device(place)


def on_cpu(place: Any) -> Any:
    """What to give to MLX for a ``stream=``: of a GPU, what stands for it."""
    if isinstance(place, mx.Device | mx.DeviceType) and device_of(place) == GPU:
        return _thread.stream or mx.cpu
    return place


def _stream_device(stream: Any) -> mx.Device:
    if stream in _gpu_streams:
        return GPU
    return _device_of[type(stream)].__get__(stream)


def _stream_text(stream: Any) -> str:
    text = _text_of[type(stream)](stream)
    return text.replace("Device(cpu", "Device(gpu") if stream in _gpu_streams else text


def default_device() -> mx.Device:
    return _thread.device or _default


def set_default_device(device: Any) -> None:
    global _default
    _default = device_of(device)


def _maker(new: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(new)
    def make(device: Any) -> Any:
        stream = new(mx.cpu)
        if device_of(device) == GPU:
            _gpu_streams.add(stream)
        return stream

    return make


new_stream = _maker(_new_stream)
new_thread_local_stream = _maker(_new_thread_local_stream)
new_thread_unsafe_stream = _maker(_new_thread_unsafe_stream)


def default_stream(device: Any) -> Any:
    if device_of(device) != GPU:
        return _default_stream(device)
    if _thread.stream is None:
        _thread.stream = new_stream(GPU)
    return _thread.stream


def set_default_stream(stream: Any) -> None:
    if device_of(stream) == GPU:
        _thread.stream = stream
    else:
        _set_default_stream(stream)


def synchronize(stream: Any = None) -> None:
    place = on_cpu(stream)
    if isinstance(place, mx.Stream | mx.ThreadLocalStream):
        _synchronize(place)
    else:
        _synchronize()


class StreamContext:
    """`mx.StreamContext` for both devices."""

    def __init__(self, s: Any):
        self._place = s
        self._context = _StreamContext(on_cpu(s))

    def __enter__(self) -> None:
        self._before = (_thread.device, _thread.stream)
        _thread.device = device_of(self._place)
        if _thread.device == GPU and isinstance(self._place, mx.Stream | mx.ThreadLocalStream):
            _thread.stream = self._place
        self._context.__enter__()

    def __exit__(self, *raised: Any) -> None:
        self._context.__exit__(*raised)
        _thread.device, _thread.stream = self._before


def stream(s: Any) -> StreamContext:
    return StreamContext(s)


def is_available(device: Any) -> bool:
    return device_of(device) == GPU or _is_available(device)


def device_count(device: Any) -> int:
    return 1 if device_of(device) == GPU else _device_count(device)


def replacements(chip: Chip) -> dict[tuple[Any, str], Any]:
    """What stands in place of what, by owner and name."""

    def device_info(d: Any = None) -> dict[str, str | int]:
        return chip.device_info() if device_of(d) == GPU else _device_info(d)

    own = (
        *(default_device, set_default_device, new_stream, new_thread_local_stream),
        *(new_thread_unsafe_stream, default_stream, set_default_stream, synchronize),
        *(stream, StreamContext, is_available, device_count, device_info),
    )
    found: dict[tuple[Any, str], Any] = {(mx, each.__name__): each for each in own}
    for kind in (mx.Stream, mx.ThreadLocalStream):
        found[kind, "device"] = property(_stream_device)
        found[kind, "__repr__"] = _stream_text
    found[mx.metal, "device_info"] = chip.device_info
    found[mx.metal, "is_available"] = lambda: True
    return {**_taking_streams(), **found}


@functools.cache
def _taking_streams() -> dict[tuple[Any, str], Any]:
    """Functions and methods of MLX that take ``stream=``, with the GPU's work left to the CPU."""
    found = {}
    for owner in (mx, mx.fast, mx.random, mx.linalg, mx.fft, mx.array):
        for name, value in inspect.getmembers(owner, callable):
            if name.startswith("_") or isinstance(value, type | ModuleType):
                continue
            if "stream: " in (value.__doc__ or "").split("\n\n")[0] and value is not mx.stream:
                found[owner, name] = _on_cpu(value)
    return found


def _on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        if "stream" in named:
            named["stream"] = on_cpu(named["stream"])
        return function(*arguments, **named)

    return call
