"""Kernels and the runtime as shared libraries."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from ..language.source import KernelSource
from ..language.translate import cpp, translate
from .clang import CompileError, Compiler, find_compiler, target, without_sanitizer
from .disk_cache import cached, digest, folder, text_file
from .instrument import Mode, instrument
from .ir import USER_FILES, variable_name
from .program_scope import Variable, program_scope_variables

_FOLDER = Path(__file__).parents[1]
# The modules on which the code of a kernel depends.
_STEPS = (
    *sorted((_FOLDER / "language").glob("*.py")),
    *sorted((_FOLDER / "compilation").glob("*.py")),
)


@dataclass(frozen=True)
class Library:
    """A compiled kernel.

    Attributes:
        path: Where the shared library is.
        threadgroup: The threadgroup variables of the kernel.
        constants: Its variables in the constant address space.
        rejected: What Apple's compiler does not take: file, line and message of each place.
        waits: Whether a thread may have to wait for others.
        is_ordered: Whether its threadgroups have to run one after another.
    """

    path: Path
    threadgroup: tuple[Variable, ...]
    constants: tuple[Variable, ...]
    rejected: tuple[tuple[str, int, str], ...]
    waits: bool
    is_ordered: bool


def runtime_library() -> Path:
    """runtime/*.cpp as a shared library, compiled once.

    Raises:
        SimulatorUnavailable: if there is no compiler.
    """
    compiler = find_compiler()
    files = sorted((_FOLDER / "runtime").glob("*.cpp"))
    texts = [*files, *(_FOLDER / "runtime").glob("*.h"), _include("msl_runtime.h")]
    flags = ["-std=c++17", "-O2", "-fno-exceptions", "-fno-rtti", "-shared", "-fPIC", "-w"]
    flags += [*target(compiler), *without_sanitizer(compiler), "-nostdlib++"]
    name = "runtime-" + digest(compiler.version, repr(flags), *map(_text, texts))

    def build(path: Path) -> None:
        compiler.run([*flags, "-o", path, *files], "the simulator's runtime")

    return cached(f"{name}.so", build)


def kernel_library(
    source: KernelSource,
    name: str,
    *,
    fast_math: bool,
    mode: Mode = "checked",
    texts: Mapping[str, str],
) -> Library:
    """A kernel as a shared library, from the cache if it was compiled before.

    Args:
        source: its source.
        name: the name of the kernel, for messages.
        fast_math: compile as in MLX's math mode "fast".
        mode: how much is watched.
        texts: the user's text by its name in lines, for a debugger to show.

    Raises:
        CompileError: with the compiler's messages.
        SimulatorUnavailable: if there is no compiler.
        ValueError: if it has something that is not simulated.
    """
    compiler = find_compiler()
    flags = [*kernel_flags(compiler), "-ffast-math" if fast_math else "-fno-fast-math"]
    flags.append("-g" if mode in ("traced", "debugged") else "-gline-tables-only")
    own = map(_text, [*_STEPS, *_headers()])
    key = digest(compiler.version, _mlx_version(), repr(flags), mode, repr(source), *own)
    shown: list[str] = []
    if mode == "debugged":
        shown.append(f"-fdebug-compilation-dir={_shown_to_debuggers(key, texts)}")

    def build(path: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            unit, ir = Path(folder, "kernel.cpp"), Path(folder, "kernel.ll")
            text = translate(source)
            unit.write_text(text)
            precompiled = _precompiled_headers(compiler, flags)
            messages = compiler.run(
                [*flags, *shown, "-include-pch", precompiled, "-S", "-emit-llvm", "-o", ir, unit],
                name,
            )
            module = ir.read_text()
            if symbols := program_scope_variables(module):
                found = "\n".join(_mutable(variable_name(s), text) for s in symbols)
                raise CompileError(f"{name} does not compile:\n{found}")
            result = instrument(module, mode)
            ir.write_text(result.text)
            compiled = Path(folder, "kernel.o")
            compiler.run([*_code_flags(compiler, mode), "-c", "-o", compiled, ir], name)
            compiler.link(compiled, path, name)
            facts = {
                "threadgroup": [asdict(v) for v in result.threadgroup],
                "constants": [asdict(v) for v in result.constants],
                "rejected": _float_to_bfloat(messages) + result.rejected,
                "waits": result.waits,
                "is_ordered": result.is_ordered,
            }
            path.with_suffix(".json").write_text(json.dumps(facts))

    path = cached(f"kernel-{key}.so", build, sidecar=".json")
    facts = json.loads(path.with_suffix(".json").read_text())
    return Library(
        path,
        tuple(Variable(**v) for v in facts["threadgroup"]),
        tuple(Variable(**v) for v in facts["constants"]),
        tuple((file, line, message) for file, line, message in facts["rejected"]),
        facts["waits"],
        facts["is_ordered"],
    )


def _float_to_bfloat(messages: str) -> list[tuple[str, int, str]]:
    """clang converts a float to bfloat unasked, Metal does not."""
    return [
        (m[1], int(m[2]), m[3])
        for m in re.finditer(r"^(source|header):(\d+):\d+: warning: (.*)$", messages, re.MULTILINE)
        if re.search(r"to '(?:bfloat|bfloat16_t|__bf16)'", m[3])
    ]


def _mutable(name: str, text: str) -> str:
    """An error about a variable, at the first line of the user's text that names it."""
    message = f"error: {name!r} lives outside of functions or is static: it has to be constant"
    file, number = "", 0
    for line in text.split("\n"):
        if place := re.match(r'#line (\d+) "(\w+)"', line):
            file, number = place[2], int(place[1])
            continue
        if file in USER_FILES and re.search(rf"\b{re.escape(name)}\b", line):
            return f"{file}:{number}:1: {message}"
        number += 1
    return message


def kernel_flags(compiler: Compiler) -> list[str]:
    """How Metal text is compiled: Metal is C++14 with float literals and no libraries."""
    sanitized = (
        "array-bounds,float-cast-overflow,integer-divide-by-zero,return,shift,"
        "signed-integer-overflow"
    )
    return [
        "-std=c++14",
        "-fPIC",
        "-fno-exceptions",
        "-fno-rtti",
        "-nostdinc",
        "-nostdinc++",
        "-Wno-everything",
        "-Wimplicit-float-conversion",
        "-Werror=vla-extension",
        "-ferror-limit=20",
        "-ffp-contract=off",
        *_xclang("-cl-single-precision-constant"),
        *_xclang("-ffloat16-excess-precision=none"),
        *_xclang("-fbfloat16-excess-precision=none"),
        # accesses are watched where the source makes them: optimised is only what comes after
        "-O0",
        *_xclang("-disable-O0-optnone"),
        "-fomit-frame-pointer",
        # a loop that waits for memory to change is not taken for one that ends
        "-fno-finite-loops",
        "-ftrivial-auto-var-init=pattern",
        *without_sanitizer(compiler),
        f"-fsanitize={sanitized}",
        "-fsanitize-recover=all",
        "-fstack-clash-protection",
        *target(compiler),
        f"-I{_FOLDER / 'include'}",
        *(f"-I{folder}" for folder in _mlx_include()),
    ]


def _shown_to_debuggers(key: str, texts: Mapping[str, str]) -> Path:
    """The folder that holds the user's texts under the names that the lines of a kernel have."""
    for name, text in texts.items():
        cached(f"debugged-{key}/{name}", text_file(text))
    return folder() / f"debugged-{key}"


def _code_flags(compiler: Compiler, mode: Mode) -> list[str]:
    return [
        "-O0" if mode == "debugged" else "-O1",
        # copies of the calls in a loop take the compiler long and are hardly faster
        "-fno-unroll-loops",
        "-mllvm",
        "-unroll-threshold=0",
        "-fPIC",
        "-w",
        *without_sanitizer(compiler),
        *target(compiler),
    ]


def _xclang(flag: str) -> list[str]:
    return ["-Xclang", flag]


def _precompiled_headers(compiler: Compiler, flags: Sequence[str]) -> Path:
    """What stands before every kernel: include/ and MLX's own preamble."""
    # so that an access in a header is known by the user's line that calls it
    preamble = "#pragma clang attribute push(__attribute__((always_inline)), apply_to = function)\n"
    preamble += "#include <metal_stdlib>\n"
    if folders := _mlx_include():
        utils = folders[0] / "mlx/backend/metal/kernels/utils.h"
        patched = _as_cpp(utils)
        preamble += f'#include "{cached(f"utils-{digest(patched)}.h", text_file(patched))}"\n'
    else:
        preamble += "typedef bfloat bfloat16_t;\ntypedef half float16_t;\n"
    preamble += "#pragma clang attribute pop\n"
    text = cached(f"preamble-{digest(preamble)}.h", text_file(preamble))
    texts = map(_text, _headers())
    key = digest(compiler.version, _mlx_version(), repr(flags), preamble, *texts)

    def build(path: Path) -> None:
        # by content, not by time: the cache's names already tell the headers apart
        timeless = ["-Xclang", "-fno-pch-timestamp"]
        compiler.run(
            [*flags, *timeless, "-x", "c++-header", "-o", path, text], "the simulator's headers"
        )

    return cached(f"headers-{key}.pch", build)


@cache
def _as_cpp(path: Path) -> str:
    return cpp(path.read_text())


@cache
def _mlx_include() -> list[Path]:
    """MLX's headers, which its wheel holds: custom kernels are compiled after its utils.h."""
    spec = importlib.util.find_spec("mlx")
    folders = [Path(p, "include") for p in (spec.submodule_search_locations or [])] if spec else []
    return [f for f in folders if (f / "mlx/backend/metal/kernels/utils.h").exists()][:1]


@cache
def _mlx_version() -> str:
    """Stands for what its utils.h includes."""
    return importlib.metadata.version("mlx")


@cache
def _headers() -> tuple[Path, ...]:
    return tuple(sorted(p for p in (_FOLDER / "include").rglob("*") if p.is_file()))


def _include(name: str) -> Path:
    return _FOLDER / "include" / name


@cache
def _text(path: Path) -> str:
    return path.read_text()
