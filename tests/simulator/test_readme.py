"""The examples of the simulator's README run and print what it says; its table is complete."""

from __future__ import annotations

import re
from pathlib import Path

import mlx.core as mx

from fm_mlx.metal_kernels import simulator
from fm_mlx.metal_kernels.simulator.execution import native

README = Path(simulator.__file__).with_name("README.md").read_text()
FENCED = re.findall(r"```(?:python)?\n(.*?)```", README, re.DOTALL)
EXAMPLE, PRINTED, REDIRECTED, TRACED, STEPS, _ = FENCED
# What the steps are those of.
COPIED = """
uint i = thread_position_in_grid.x;
float sum = x[i];
o[i] = sum;"""


def test_first_kernel(capsys):
    exec(EXAMPLE, {})
    assert capsys.readouterr().out.strip() == PRINTED.strip()


def test_first_kernel_with_its_barrier(capsys):
    barrier = "threadgroup_barrier(mem_flags::mem_threadgroup);"
    assert barrier in README
    example = EXAMPLE.replace("y[i] =", f"{barrier}\n y[i] =")
    names: dict = {}
    exec(example, names)
    assert names["y"].tolist() == list(range(63, -1, -1))
    assert not names["kernel"].report.findings


def test_redirected():
    exec(REDIRECTED, {"simulator": simulator})


def test_traced(capsys):
    def launch():
        kernel = simulator.metal_kernel("copy", ["x"], ["o"], COPIED)
        kernel(
            inputs=[mx.arange(8) / 2],
            grid=(8, 1, 1),
            threadgroup=(8, 1, 1),
            output_shapes=[(8,)],
            output_dtypes=[mx.float32],
        )

    exec(TRACED, {"simulator": simulator, "launch": launch})
    assert capsys.readouterr().out == STEPS


def test_kinds_are_numbered_as_the_runtime_does():
    header = Path(simulator.__file__).with_name("runtime") / "launch.h"
    names = re.search(r"enum msl_kind \{(.*?)MSL_KINDS", header.read_text(), re.DOTALL)[1]
    names = re.findall(r"^  MSL_(\w+)", names, re.MULTILINE)
    assert tuple(name.lower().replace("_", "-") for name in names) == native.KINDS


def test_every_kind_is_explained():
    assert {kind for kind in simulator.KINDS if f"`{kind}`" not in README} == set()
