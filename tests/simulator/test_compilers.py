"""Which compiler is taken, the cache, and one clear line where there is none."""

from __future__ import annotations

import os
import shutil
import sys

import mlx.core as mx
import pytest
from launches import INDEX, X, launch

from fm_mlx.metal_kernels import simulator
from fm_mlx.metal_kernels.simulator.compilation import clang, disk_cache, libraries
from fm_mlx.metal_kernels.simulator.execution import native

SHARED = (
    "threadgroup float s[64]; " + INDEX + "s[i] = simd_sum(x[i]) + float2(1, 2).y;"
    "threadgroup_barrier(mem_flags::mem_threadgroup); o[i] = s[63 - i];"
)


@pytest.fixture
def no_compiler(monkeypatch):
    """A machine without clang and ziglang."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv(clang.COMPILER_VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "ziglang", None)
    monkeypatch.setattr(clang.importlib.util, "find_spec", lambda name: None)
    clang._find_compiler.cache_clear()
    yield
    clang._find_compiler.cache_clear()


def test_no_compiler(no_compiler):
    reason = simulator.unavailable()
    assert "\n" not in reason
    assert "clang++ 18 or later" in reason
    assert "pip install ziglang" in reason
    with pytest.raises(simulator.SimulatorUnavailable, match="pip install ziglang"):
        launch(INDEX + "o[i] = x[i];")


def test_machine_that_is_not_supported(monkeypatch):
    monkeypatch.setattr(clang.platform, "machine", lambda: "riscv64")
    clang._find_compiler.cache_clear()
    try:
        assert "x86-64 and arm64; this is" in simulator.unavailable()
    finally:
        clang._find_compiler.cache_clear()


@pytest.mark.parametrize("named", ["no-such-clang", "python3", "true"])
def test_named_compiler_that_is_none(monkeypatch, named):
    monkeypatch.setenv(clang.COMPILER_VARIABLE, named)
    assert f"FM_MLX_CLANG is '{named}'" in simulator.unavailable()


def clangs() -> list[str]:
    names = ["clang++", *(f"clang++-{n}" for n in range(18, 25))]
    return [name for name in names if shutil.which(name)]


@pytest.mark.parametrize("kind", ["clang", "zig"])
def test_compilers_agree(monkeypatch, kind):
    """Each compiler of this machine gives the same numbers, findings and counts."""
    wanted, report = launch(SHARED)
    if kind == "clang":
        if not clangs():
            pytest.skip("there is no clang++ on the path")
        named = clangs()[0]
    else:
        pytest.importorskip("ziglang", reason="ziglang is not installed")
        named = f"{sys.executable} -m ziglang c++"
    monkeypatch.setenv(clang.COMPILER_VARIABLE, named)
    if reason := simulator.unavailable():
        pytest.skip(reason)
    o, other = launch(SHARED)
    assert mx.array_equal(o, wanted)
    assert other.buffers == report.buffers
    with pytest.raises(simulator.SimulationError) as error:
        launch(INDEX + "int a = 65536 + int(i); o[i] = x[i + 200] + a * a;")
    assert {"out-of-bounds", "undefined-behaviour"} <= error.value.report.kinds


def test_without_a_linker_the_compiler_links(monkeypatch, tmp_path):
    """As everywhere but on Linux, where kernels are linked by ld itself."""

    def output(folder: str) -> mx.array:
        monkeypatch.setenv(disk_cache.VARIABLE, str(tmp_path / folder))
        o, report = launch(INDEX + "o[i] = sin(x[i]);")
        assert report.findings == []
        return o

    linked = output("by the linker")
    compiler = clang.find_compiler()
    monkeypatch.setattr(clang.shutil, "which", lambda *_, **__: None)
    commands, run = [], clang._run
    monkeypatch.setattr(clang, "_run", lambda *args: (commands.append(args[0]), run(*args))[1])
    assert mx.array_equal(output("by the compiler"), linked)
    linking = [command for command in commands if command[-1].endswith("kernel.o")]
    assert [tuple(c[: len(compiler.command)]) for c in linking] == [compiler.command]


def test_cache(monkeypatch, tmp_path):
    """A kernel is compiled once, another text anew; nothing half-written is left."""
    monkeypatch.setenv(disk_cache.VARIABLE, str(tmp_path))
    launch(INDEX + "o[i] = x[i];")
    first = sorted(tmp_path.iterdir())
    assert {path.suffix for path in first} == {".so", ".json", ".pch", ".h"}
    calls = []
    run = clang.Compiler.run
    monkeypatch.setattr(clang.Compiler, "run", lambda *args: (calls.append(args), run(*args))[1])
    launch(INDEX + "o[i] = x[i];")
    assert sorted(tmp_path.iterdir()) == first
    assert not calls
    launch(INDEX + "o[i] = x[i] + 1;")
    assert len(calls) == 2
    assert len(sorted(tmp_path.iterdir())) == len(first) + 2


def test_cache_outlives_an_installation(monkeypatch, tmp_path):
    """Files of the same content get new times, which clang would hold against its headers."""
    include = tmp_path / "include"
    shutil.copytree(libraries._FOLDER / "include", include)
    monkeypatch.setenv(disk_cache.VARIABLE, str(tmp_path / "cache"))
    flags = libraries.kernel_flags
    moved = {f"-I{libraries._FOLDER / 'include'}": f"-I{include}"}
    monkeypatch.setattr(
        libraries, "kernel_flags", lambda found: [moved.get(flag, flag) for flag in flags(found)]
    )
    launch(INDEX + "o[i] = x[i];")
    os.utime(include / "metal_stdlib")
    launch(INDEX + "o[i] = x[i] + 1;")


def test_failed_compilation_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv(disk_cache.VARIABLE, str(tmp_path))
    launch(INDEX + "o[i] = x[i];")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(simulator.CompileError):
        launch(INDEX + "o[i] = y[i];")
    assert sorted(tmp_path.iterdir()) == before


def test_message_of_a_compile_error():
    with pytest.raises(simulator.CompileError, match=r"k does not compile:\nsource:2:\d+: error:"):
        launch(INDEX + "\no[i] = y[i];")
    with pytest.raises(simulator.CompileError, match=r"header:3:\d+: error:"):
        launch("o[0] = 1;", make={"header": "\n\nfloat f() { return y; }\n"})


def test_kernel_of_the_same_name_with_other_source_is_another():
    """MLX #3832 ran the stale one."""
    first, _ = launch(
        INDEX + "o[i] = f(x[i]);", make={"header": "float f(float a) { return a; }\n"}
    )
    header = "float f(float a) { return 2 * a; }\n"
    second, _ = launch(INDEX + "o[i] = f(x[i]);", make={"header": header})
    assert mx.array_equal(first, X[:64])
    assert mx.array_equal(second, 2 * X[:64])


def test_fast_math_is_a_choice():
    """MLX's math mode "fast" lets the compiler cancel, "safe" rounds as written."""
    source = INDEX + "o[i] = (x[i] + 1e8f) - 1e8f;"
    o, _ = launch(source)
    assert not mx.array_equal(o, X[:64])
    o, _ = launch(source, make={"compile_options": {"math_mode": "fast"}})
    assert mx.array_equal(o, X[:64])


def test_structures_are_those_of_the_library(monkeypatch):
    """What Python mirrors of runtime/launch.h is held against it when the library is loaded."""
    library = native._runtime()
    native._check_layout(library)
    monkeypatch.setattr(native, "KINDS", (*native.KINDS, "another"))
    with pytest.raises(ImportError, match=r"launch\.h declares .*; native\.py mirrors"):
        native._check_layout(library)
