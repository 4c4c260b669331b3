"""Which kernels `fm-mlx doctor` found wrong on this machine; their reference ops run instead.

A verdict is about one text of a kernel, one version of MLX and one device: a kernel is tried
again as soon as one of these changes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

import mlx.core as mx

from fm_mlx.metal_kernels.sources import metal_source, sources
from fm_mlx.support.arrays import mlx_version
from fm_mlx.support.files import write_json

_disregarded: ContextVar[bool] = ContextVar("disregarded", default=False)


def path() -> Path:
    """The file that the verdicts are kept in."""
    # imported here: a process without verdicts has no use for the simulator's package
    from fm_mlx.metal_kernels.simulator.compilation.disk_cache import folder

    return folder() / "doctor.json"


@cache
def switched_off(backend: str) -> frozenset[str]:
    """The Metal files whose kernels a backend does not run on this machine.

    Raises:
        ValueError: if the file of verdicts holds something else.
    """
    found = _read().get(backend, {})
    return frozenset(name for name in sources() if name in found and found[name] == _about(name))


def are_disregarded(file: str) -> bool:
    """Whether a kernel that is switched off is run all the same.

    If it is not, one line on standard error says so, the first time in a process.
    """
    if not _disregarded.get():
        _say_once(file)
    return _disregarded.get()


@contextmanager
def disregarded() -> Iterator[None]:
    """Run all kernels inside a ``with`` block, whatever the verdicts say."""
    token = _disregarded.set(True)
    try:
        yield
    finally:
        _disregarded.reset(token)


def record(backend: str, broken: Iterable[str]) -> None:
    """Write down which Metal files are wrong with a backend; all others count as right."""
    verdicts = _read() | {backend: {name: _about(name) for name in broken}}
    path().parent.mkdir(parents=True, exist_ok=True)
    write_json(path(), verdicts)
    forget()


def forget() -> None:
    """Read the file of verdicts anew at the next question."""
    switched_off.cache_clear()
    _say_once.cache_clear()


@cache
def _say_once(file: str) -> None:
    print(
        f"fm-mlx: the kernel {file} is switched off on this machine, its reference op runs "
        f"instead: `fm-mlx doctor` found it wrong ({path()}) and checks it again",
        file=sys.stderr,
    )


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
    from fm_mlx.metal_kernels.simulator.compilation.disk_cache import digest

    device = mx.device_info().get("device_name")
    return digest(metal_source(f"{name}.metal"), mlx_version(), str(device))
