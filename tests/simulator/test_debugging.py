"""What a kernel logs, the steps of a thread, and a debugger."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
from launches import INDEX, launch

from fm_mlx.metal_kernels import simulator

STEPPED = """
uint i = thread_position_in_grid.x;
float a[2];
for (int j = 0; j < 2; ++j) {
  a[j] = x[i] * j;
}
half h = 0.5h;
float4 v = float4(a[0], a[1], i, h);
v.y = twice(v.y);
threadgroup float t[64];
t[i] = v.y;
uint big = i - 6;
o[i] = t[i];"""
HEADER = "float twice(float q) {\n  float r = q * 2;\n  return r;\n}"


def steps_of(thread, source=STEPPED, header=HEADER):
    with simulator.trace(thread) as steps:
        launch(source, make={"header": header})
    return [(step.file, step.line, step.text) for step in steps]


def test_steps_of_a_thread():
    assert steps_of((5,)) == [
        ("source", 2, "i = 5"),
        ("source", 4, "j = 0"),
        ("source", 5, "x[5] is 5"),
        ("source", 5, "a[0] = 0"),
        ("source", 4, "j = 1"),
        ("source", 5, "x[5] is 5"),
        ("source", 5, "a[1] = 5"),
        ("source", 4, "j = 2"),
        ("source", 7, "h = 0.5"),
        ("source", 8, "v = (0, 5, 5, 0.5)"),
        ("header", 2, "r = 10"),
        ("source", 9, "v[1] = 10"),
        ("source", 11, "t[5] = 10"),
        ("source", 12, "big = 4294967295"),
        ("source", 13, "t[5] is 10"),
        ("source", 13, "o[5] = 10"),
    ]


def test_of_one_thread_and_of_its_launches_only():
    assert {text for *_, text in steps_of((9, 0, 0)) if text.startswith("i =")} == {"i = 9"}
    assert steps_of((64,)) == []
    _, report = launch(STEPPED, make={"header": HEADER})
    assert report.steps == []


@pytest.mark.parametrize("thread", [(), (-1,), (0, 0, 0, 0), (1.5,)])
def test_a_position_that_is_none(thread):
    with pytest.raises(ValueError, match="wanted are one to three numbers from 0 on"):
        steps_of(thread)


def test_log(capsys):
    source = (
        INDEX + 'if (i > 61)\n os_log_default.log("%u: %g, %d%%", i, half(x[i]), -3);\no[i] = 0;'
    )
    _, report = launch(source)
    noted = [(note.thread, note.file, note.line, note.text) for note in report.logged]
    assert noted == [
        ((62, 0, 0), "source", 2, "62: 62, -3%"),
        ((63, 0, 0), "source", 2, "63: 63, -3%"),
    ]
    assert capsys.readouterr().err.splitlines() == [
        "k (62, 0, 0) source:2: 62: 62, -3%",
        "k (63, 0, 0) source:2: 63: 63, -3%",
    ]


def test_log_of_a_logger():
    header = 'constant metal::os_log logger("mine", "tests");'
    source = INDEX + 'if (i == 3) logger.log_error("three"); o[i] = 0;'
    _, report = launch(source, make={"header": header})
    assert [note.text for note in report.logged] == ["three"]


def test_a_vector_is_not_logged():
    with pytest.raises(simulator.CompileError, match="log the components of a vector one by one"):
        launch(INDEX + 'os_log_default.log("%f", float2(1)); o[i] = 0;')


def test_values_of_every_type():
    source = """
uint i = thread_position_in_grid.x;
bool b = i == 0; char c = -1; uchar d = 255; short e = -2; ushort f = 65535; int g = -3;
long k = -4; ulong l = 5; half h = -2.5h; bfloat m = bfloat(1.5f); float n = 1e-3;
half2 p = half2(1, 2);
o[i] = 0;"""
    told = [text for _, line, text in steps_of((0,), source, "") if 3 <= line <= 5]
    assert told == [
        *("b = true", "c = -1", "d = 255", "e = -2", "f = 65535", "g = -3", "k = -4", "l = 5"),
        *("h = -2.5", "m = 1.5", "n = 0.001", "p = (1, 2)"),
    ]


SCRIPT = f"""
import mlx.core as mx
from fm_mlx.metal_kernels import simulator

kernel = simulator.metal_kernel("stepped", ["x"], ["o"], {STEPPED!r}, header={HEADER!r})
with simulator.debug((5,)):
    (o,) = kernel(
        inputs=[mx.arange(64).astype(mx.float32)],
        grid=(64, 1, 1),
        threadgroup=(64, 1, 1),
        output_shapes=[(64,)],
        output_dtypes=[mx.float32],
    )
print(o[5].item())
"""
GDB = """
set breakpoint pending on
set debuginfod enabled off
break msl_thread_begins
run
break source:9
continue
print i
print a
step
info source
"""


def test_for_a_debugger_nothing_is_watched():
    with simulator.debug((5,)):
        o, report = launch(STEPPED, make={"header": HEADER})
    assert o[5].item() == 10
    assert report.buffers["x"].loads.count == 0
    assert not report.findings


def test_in_gdb(tmp_path):
    if not shutil.which("gdb"):
        pytest.skip("no gdb to step with")
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "words").write_text(GDB)
    command = ["gdb", "-q", "-batch", "-x", "words", "--args", sys.executable, "script.py"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    assert "$1 = 5" in told
    assert "$2 = {0, 5}" in told
    assert re.search(r"Current source file is \S*header\b", told)
