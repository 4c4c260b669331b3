"""``python -m ... run script.py``: a script runs as on a Mac, its Metal kernels simulated."""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack

from .. import settings
from ..mac import redirection
from ..mac.macos import pretended
from .annotations import github, write_sarif
from .record import NOT_ON_THE_CPU, Record, distinct, is_not_on_the_cpu, recorded, table


def run(
    target: str,
    arguments: Sequence[str],
    *,
    is_module: bool,
    chip: str,
    macos: bool,
    fails: bool,
    orders: int,
    nan: bool,
    sarif: str | None,
) -> int:
    """Run a script or a module, and tell on the standard error what its kernels did.

    Args:
        target: the path of the script, or the name of the module.
        arguments: what it gets in ``sys.argv``.
        is_module: whether `target` is a module.
        chip: the chip that MLX describes.
        macos: whether Python says that it runs on macOS.
        fails: whether a fatal finding makes the exit status 1.
        orders: how many orders to execute every launch in.
        nan: whether NaN is watched.
        sarif: the file to write the findings to.

    Returns:
        The exit status: the script's own if it is not 0.

    Raises:
        ValueError: if there is no such chip.
    """
    record = Record()
    before = settings.set_defaults(orders=orders, nan=nan)
    try:
        with ExitStack() as pretence:
            pretence.enter_context(redirection.redirected(chip=chip, raises=False))
            pretence.enter_context(recorded(record))
            if macos:
                pretence.enter_context(pretended())
            status = _execute(target, arguments, is_module)
    finally:
        settings.set_defaults(orders=before.orders, nan=before.nan)
    found = distinct([record])
    lines = table([record]) if record.launches else ["no kernel was launched"]
    lines += map(str, found)
    if os.environ.get("GITHUB_ACTIONS"):
        lines += map(github, found)
    print("\n".join(lines), file=sys.stderr)
    if sarif:
        write_sarif(sarif, found)
    return status or int(fails and bool(record.fatal))


def _execute(target: str, arguments: Sequence[str], is_module: bool) -> int:
    """Run it as the main program; what it exits with."""
    saved = sys.argv, sys.path[:]
    sys.argv = [target, *arguments]
    sys.path[0:1] = [os.getcwd() if is_module else os.path.dirname(os.path.abspath(target))]
    try:
        if is_module:
            runpy.run_module(target, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(target, run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    except Exception as error:
        traceback.print_exc()
        if is_not_on_the_cpu(error):
            print(NOT_ON_THE_CPU, file=sys.stderr)
        return 1
    finally:
        sys.argv, sys.path[:] = saved
    return 0
