"""The compiler: a clang of the machine, or zig's."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

COMPILER_VARIABLE = "FM_MLX_CLANG"

_OLDEST_CLANG = 18
_MACHINES = {"x86_64": "x86_64", "AMD64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}


class CompileError(RuntimeError):
    """The compiler rejects a kernel; the message is the compiler's, with the user's lines."""


class SimulatorUnavailable(RuntimeError):
    """There is no compiler, or the machine is not supported; the message says which."""


@dataclass(frozen=True)
class Compiler:
    """A clang: how it is called, and what it says its version is."""

    command: tuple[str, ...]
    version: str

    @property
    def is_zig(self) -> bool:
        return any("zig" in Path(word).name for word in self.command)

    def run(self, arguments: Sequence[str | Path], what: str) -> str:
        """Run it; what it writes to the standard error.

        Raises:
            CompileError: if it fails.
        """
        return _run([*self.command, *map(str, arguments)], what)

    def link(self, compiled: Path, library: Path, what: str) -> None:
        """Make an object file a shared library.

        By the linker itself where it is known how: clang takes ten times as long to call it.

        Raises:
            CompileError: if it fails.
        """
        linker = shutil.which("ld") if platform.system() == "Linux" else None
        if linker:
            _run([linker, "-shared", "-o", str(library), str(compiled), "-lm"], what)
            return
        lazy = ["-undefined", "dynamic_lookup"] if platform.system() == "Darwin" else []
        flags = ["-shared", "-nostdlib++", "-lm", *lazy, *without_sanitizer(self), *target(self)]
        self.run([*flags, "-o", library, compiled], what)


def _run(command: Sequence[str], what: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CompileError(f"{what} does not compile:\n{_readable(done.stderr)}")
    return done.stderr


def unavailable() -> str | None:
    """Why the simulator cannot run here, in one line; None if it can."""
    try:
        find_compiler()
    except SimulatorUnavailable as error:
        return str(error)
    return None


def find_compiler() -> Compiler:
    """The compiler that is named, else a clang on the path, else zig's.

    Raises:
        SimulatorUnavailable: if there is none, or the machine is not supported.
    """
    return _find_compiler(os.environ.get(COMPILER_VARIABLE, ""), os.environ.get("PATH", ""))


@cache
def _find_compiler(named: str, path: str) -> Compiler:
    if platform.system() not in ("Linux", "Darwin") or platform.machine() not in _MACHINES:
        raise SimulatorUnavailable(
            f"the simulator runs on Linux and macOS, x86-64 and arm64; "
            f"this is {platform.system()} on {platform.machine()}"
        )
    if named:
        if compiler := _compiler(tuple(named.split())):
            return compiler
        raise SimulatorUnavailable(
            f"{COMPILER_VARIABLE} is {named!r}; wanted is a clang++ of version "
            f"{_OLDEST_CLANG} or later"
        )
    for name in ["clang++", *(f"clang++-{n}" for n in range(30, _OLDEST_CLANG - 1, -1))]:
        if shutil.which(name, path=path) and (compiler := _compiler((name,))):
            return compiler
    ziglang = importlib.util.find_spec("ziglang")
    for folder in (ziglang.submodule_search_locations if ziglang else None) or ():
        if compiler := _compiler((str(Path(folder, "zig")), "c++")):
            return compiler
    raise SimulatorUnavailable(
        f"the simulator needs clang++ {_OLDEST_CLANG} or later, or `pip install ziglang`, "
        f"or {COMPILER_VARIABLE} to name a compiler"
    )


def _compiler(command: tuple[str, ...]) -> Compiler | None:
    """The compiler if it is there and new enough. Apple numbers its versions otherwise."""
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True)
    except OSError:
        return None
    version = re.search(r"clang version (\d+)", done.stdout)
    if done.returncode or not version or "Apple" in done.stdout:
        return None
    return Compiler(command, done.stdout) if int(version[1]) >= _OLDEST_CLANG else None


def without_sanitizer(compiler: Compiler) -> list[str]:
    """zig traps on undefined behaviour unless told not to."""
    if not compiler.is_zig:
        return []
    return ["-fno-sanitize=undefined"]


def target(compiler: Compiler) -> list[str]:
    """The same instructions on every machine, with half precision conversions."""
    if _MACHINES[platform.machine()] == "arm64":
        return []
    return ["-mcpu=baseline+f16c"] if compiler.is_zig else ["-mf16c"]


def _readable(diagnostics: str) -> str:
    # how include/metal_stdlib makes an error of the word
    no_double = "unknown type name 'msl_error__double_is_not_a_Metal_type'"
    diagnostics = diagnostics.replace(no_double, "Metal has no double")
    return re.sub(r"^.*/(?=kernel\.cpp)", "", diagnostics, flags=re.MULTILINE)[-6000:]
