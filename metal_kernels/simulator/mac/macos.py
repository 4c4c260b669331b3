"""Python that says it runs on macOS, for libraries that refuse to be imported elsewhere."""

from __future__ import annotations

import importlib
import platform
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

_PACKAGE = __name__.rsplit(".", 2)[0]

_VERSION = "15.5"

# What the platform module answers; the version with the names that mac_ver() gives.
_ANSWERS = {
    "system": "Darwin",
    "machine": "arm64",
    "processor": "arm",
    "mac_ver": (_VERSION, ("", "", ""), "arm64"),
}

# Modules that choose by sys.platform when they are imported, and would not find what macOS has.
_CHOOSING = (
    *("asyncio", "ctypes.util", "getpass", "multiprocessing.context", "multiprocessing.spawn"),
    *("multiprocessing.resource_tracker", "selectors", "shutil", "socket"),
    *("urllib.request", "uuid", "webbrowser"),
)


@contextmanager
def pretended() -> Iterator[None]:
    """``sys.platform`` and the platform module say macOS on arm64 inside a ``with`` block."""
    for name in _CHOOSING:
        importlib.import_module(name)
    sysconfig.get_config_vars()
    with ExitStack() as changes:
        changes.enter_context(mock.patch.object(sys, "platform", "darwin"))
        for name, value in _ANSWERS.items():
            answer = _answer(getattr(platform, name), value)
            changes.enter_context(mock.patch.object(platform, name, answer))
        yield


def _answer(real: Callable[..., Any], pretended: Any) -> Callable[..., Any]:
    """The pretended answer for everybody but the simulator, which has to know where it is."""

    def answer(*arguments: Any, **named: Any) -> Any:
        asking = sys._getframe(1).f_globals.get("__name__", "")
        return real(*arguments, **named) if asking.startswith(_PACKAGE) else pretended

    return answer
