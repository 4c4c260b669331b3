"""What the doctor's process does instead of checking kernels, in tests.

`doctor.examine_from` is handed to a new process by its name, so the stand-ins stand in a module.
"""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection

from kernel_mutants import MUTANTS

from fm_mlx.metal_kernels.catalogue import KERNELS
from fm_mlx.metal_kernels.launch import Backend
from fm_mlx.ops import state_pass
from fm_mlx.perf import doctor, kernel_checks

WRONG = next(m for m in MUTANTS if m.kernel == "sparse_update" and "first SIMD-group" in m.name)


def checks_of(file: str):
    """The checks of one Metal file, as the others take their time."""
    return [check for check in kernel_checks.checks() if check.file == file]


def right(file: str, sender: Connection, backend: Backend, first: int) -> None:
    doctor.checks = lambda: iter(checks_of(file))
    doctor.examine_from(sender, backend, first)


def wrong(file: str, sender: Connection, backend: Backend, first: int) -> None:
    with WRONG.applied():
        right(file, sender, backend, first)


def not_compiling(file: str, sender: Connection, backend: Backend, first: int) -> None:
    KERNELS["route_dense"].header = "no Metal at all"
    right(file, sender, backend, first)


def not_launched(file: str, sender: Connection, backend: Backend, first: int) -> None:
    vars(state_pass)["runs"] = lambda _: False
    right(file, sender, backend, first)


def crashing(file: str, sender: Connection, backend: Backend, first: int) -> None:
    """The second check takes the process down, each time that it is begun with."""
    if first == 0:
        doctor.checks = lambda: iter(checks_of(file)[:1])
        doctor.examine_from(sender, backend, 0)
    if first <= 1:
        os.abort()
    right(file, sender, backend, first)


def killed(sender: Connection, backend: Backend, first: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def waiting(sender: Connection, backend: Backend, first: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(600)
