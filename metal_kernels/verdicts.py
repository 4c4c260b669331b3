"""Kernels that `fm-mlx doctor` found wrong on this machine; their twins take their place.

A verdict is about one text of a kernel, one version of MLX and one device: a kernel is
tried again as soon as one of these changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

import mlx.core as mx

from fm_mlx.files import write_json
from fm_mlx.metal_kernels.disk_cache import digest, folder
from fm_mlx.metal_kernels.sources import metal_source, sources

_disregarded: ContextVar[bool] = ContextVar("disregarded", default=False)


def path() -> Path:
    """The file of verdicts."""
    return folder() / "doctor.json"


def switched_off(backend: str) -> frozenset[str]:
    """Metal files whose kernels a backend does not run here; the file is read once.

    Raises:
        ValueError: if the file of verdicts holds something else.
    """
    return frozenset() if _disregarded.get() else _noted(backend)


@contextmanager
def disregarded() -> Iterator[None]:
    """Run all kernels inside a ``with`` block, whatever is noted."""
    token = _disregarded.set(True)
    try:
        yield
    finally:
        _disregarded.reset(token)


@cache
def _noted(backend: str) -> frozenset[str]:
    found = _read().get(backend, {})
    return frozenset(name for name in sources() if name in found and found[name] == _about(name))


def record(backend: str, broken: Iterable[str]) -> None:
    """Put down which Metal files are wrong with a backend; all others are taken to be right."""
    verdicts = _read() | {backend: {name: _about(name) for name in broken}}
    path().parent.mkdir(parents=True, exist_ok=True)
    write_json(path(), verdicts)
    _noted.cache_clear()


def _read() -> dict[str, dict[str, str]]:
    try:
        verdicts = json.loads(path().read_text())
        if all(isinstance(found, dict) for found in verdicts.values()):
            return verdicts
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError):
        pass
    raise ValueError(f"{path()} is not what fm-mlx doctor writes; remove it")


def _about(name: str) -> str:
    device = mx.device_info().get("device_name")
    return digest(metal_source(f"{name}.metal"), mx.__version__, str(device))
