"""``python -m fm_mlx.metal_kernels.simulator run``: scripts and modules as on a Mac."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from fm_mlx.metal_kernels import simulator
from fm_mlx.metal_kernels.simulator import __main__ as program

SCRIPT = '''
import platform
import sys

import mlx.core as mx

kernel = mx.fast.metal_kernel(
    name="shift", input_names=["x"], output_names=["y"],
    source="""
        uint i = thread_position_in_grid.x;
        y[i] = x[i + 1];
    """,
)
try:
    kernel(
        inputs=[mx.zeros(32)], grid=(32, 1, 1), threadgroup=(32, 1, 1),
        output_shapes=[(32,)], output_dtypes=[mx.float32],
    )
except OSError:
    pass
print(__name__, sys.argv[1:], mx.device_info()["architecture"], sys.platform, platform.system())
sys.exit(int(sys.argv[1]))
'''


@pytest.fixture
def script(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "shift.py"
    path.write_text(SCRIPT)
    return path


def run(monkeypatch, *words: str) -> int:
    """The program in this process."""
    monkeypatch.setattr(sys, "argv", ["simulator", "run", *words])
    return program.main()


def test_a_script(script, monkeypatch, capfd):
    assert run(monkeypatch, "--chip=m3-ultra", "--sarif=f.sarif", "shift.py", "0", "--x") == 1
    told = capfd.readouterr()
    assert told.out == f"__main__ ['0', '--x'] applegpu_g15d {sys.platform} {platform.system()}\n"
    assert "shift          1  out-of-bounds x1" in told.err
    assert "shift.py:11: out-of-bounds: " in told.err
    assert json.loads(Path("f.sarif").read_text())["runs"][0]["results"]
    assert run(monkeypatch, "--findings=warn", "shift.py", "0") == 0
    assert run(monkeypatch, "shift.py", "7") == 7
    assert run(monkeypatch, "--findings=warn", "shift.py") == 1  # an exception of the script
    told = capfd.readouterr().err
    assert "IndexError: list index out of range" in told and "shift          1  out-of-b" in told


def test_a_module_on_macos(script):
    """In a process of its own, as a user runs it."""
    command = [sys.executable, "-m", simulator.__name__, "run", "--macos", "-m", "shift", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "__main__ ['0'] applegpu_g16s darwin Darwin\n"
    assert done.returncode == 1
    assert "out-of-bounds" in done.stderr


@pytest.mark.parametrize("words", [["--chip=m9", "a.py"], ["--orders=0", "a.py"], []])
def test_bad_options(monkeypatch, capsys, words):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *words)
    assert stop.value.code == 2
    assert "usage: " in capsys.readouterr().err
