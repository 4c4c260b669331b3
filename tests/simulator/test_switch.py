"""The switch between threads keeps every register, on x86-64 and, emulated, on arm64."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fm_mlx.metal_kernels import simulator

RUNTIME = Path(simulator.__file__).with_name("runtime")
EMULATORS = {"aarch64": ("qemu-aarch64", "qemu-aarch64-static"), "x86_64": ("qemu-x86_64",)}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_registers(machine, tmp_path):
    pytest.importorskip("ziglang", reason="ziglang, which compiles for other machines, is missing")
    emulator = [name for name in EMULATORS[machine] if shutil.which(name)][:1]
    if platform.system() != "Linux":
        pytest.skip("the test program is for Linux")
    if platform.machine() != machine and not emulator:
        pytest.skip(f"no {EMULATORS[machine][0]} to run a program for {machine}")
    program = tmp_path / "switch"
    zig = [sys.executable, "-m", "ziglang", "c++"]
    if platform.machine() != machine:
        zig += ["-target", f"{machine}-linux-musl", "-static"]
    flags = ["-std=c++17", "-O2", "-fno-exceptions", "-fno-rtti", "-nostdlib++"]
    sources = [Path(__file__).with_name("switch.cpp"), *sorted(RUNTIME.glob("*.cpp"))]
    subprocess.run(
        [*zig, *flags, "-fno-sanitize=undefined", f"-I{RUNTIME}", "-o", program, *sources],
        check=True,
        capture_output=True,
    )
    run = [program] if platform.machine() == machine else [*emulator, program]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "kept")
