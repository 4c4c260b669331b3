"""How kernels are made and called, who is told, and what the arguments of a launch show."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from launches import INDEX, X, launch

from fm_mlx.metal_kernels import simulator
from fm_mlx.metal_kernels.simulator.compilation import disk_cache

CALL = {
    "inputs": [X],
    "grid": (4, 1, 1),
    "threadgroup": (4, 1, 1),
    "output_shapes": [(4,)],
    "output_dtypes": [mx.float32],
}


@pytest.fixture(scope="module")
def copy():
    return simulator.metal_kernel("copy", ["x"], ["o"], INDEX + "o[i] = x[i];")


def kinds(source, **kwargs):
    _, report = launch(source, fatal=(), **kwargs)
    return {finding.kind: finding for finding in report.findings}


def test_what_mlx_takes_is_taken(copy):
    for inputs in ([X], (X,), [np.arange(8, dtype=np.float32)]):
        (o,) = copy(**{**CALL, "inputs": inputs, "grid": [4, 1, 1]})
        assert o.tolist() == [0, 1, 2, 3]
    scalar = simulator.metal_kernel("scalar", ["x"], ["o"], INDEX + "o[i] = x;")
    for inputs in ([3], [3.0], [np.float32(3)], [mx.array(3)]):
        assert scalar(**{**CALL, "inputs": inputs})[0].tolist() == [3] * 4


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"inputs": [[1.0, 2.0]]}, ValueError, "Invalid type list received in array init"),
        ({"inputs": []}, ValueError, r"Expected `inputs` to have size 1 but got size 0"),
        ({"output_shapes": [(4,), (4,)]}, ValueError, "Expected `output_shapes` to have size 1"),
        ({"grid": (4.0, 1, 1)}, TypeError, "incompatible function arguments"),
        ({"grid": (4, 1)}, TypeError, "incompatible function arguments"),
        ({"template": [("T", 1.0)]}, ValueError, "Invalid template argument"),
        ({"grid": (-4, 1, 1)}, ValueError, r"grid \(-4, 1, 1\) of kernel 'copy': .* at least 1"),
        ({"grid": (0, 1, 1)}, ValueError, r"grid \(0, 1, 1\) of kernel 'copy': .* at least 1"),
        ({"threadgroup": (0, 1, 1)}, ValueError, "threadgroup .* at least 1"),
        ({"threadgroup": (64, 32, 1)}, ValueError, "has 2048 threads; allowed are 1024"),
        ({"other": 1}, TypeError, "unexpected keyword argument 'other'"),
    ],
)  # fmt: skip
def test_what_mlx_refuses_is_refused(copy, changes, error, message):
    with pytest.raises(error, match=message):
        copy(**{**CALL, **changes})


def test_arguments_by_position_are_refused(copy):
    with pytest.raises(TypeError, match="positional"):
        copy([X], [(4,)], [mx.float32], (4, 1, 1), (4, 1, 1))


@pytest.mark.parametrize("options", [{"math": "fast"}, {"math_mode": "quick"}])
def test_compile_options_that_mlx_refuses(options):
    with pytest.raises(ValueError, match=r"\[metal_kernel\]"):
        simulator.metal_kernel("k", ["x"], ["o"], "o[0] = x[0];", compile_options=options)


def test_a_header_with_a_kernel_of_its_own():
    other = "[[kernel]] void other(device float* p [[buffer(0)]]) { p[0] = 1; }\n"
    o, _ = launch(INDEX + "o[i] = 3 * x[i];", make={"header": other})
    assert o[:3].tolist() == [0, 3, 6]


def test_launches_have_nothing_in_common(copy):
    """A second launch of the same shapes gets memory that was used before."""
    half = simulator.metal_kernel("half", ["x"], ["o"], INDEX + "if (i < x[0]) o[i] = x[i];")
    with simulator.options(fatal=()):
        (all_written,) = half(**{**CALL, "inputs": [mx.array([8.0, 1, 2, 3])]})
        assert half.report.findings == []
        (two_written,) = half(**{**CALL, "inputs": [mx.array([2.0, 5, 6, 7])]})
        assert "unwritten-output" in half.report.kinds
        (filled,) = half(**{**CALL, "inputs": [mx.array([2.0, 5, 6, 7])], "init_value": 9})
        assert half.report.findings == []
    assert all_written.tolist() == [8, 1, 2, 3]
    assert two_written[:2].tolist() == [2, 5] and mx.isnan(two_written[2:]).all()
    assert filled.tolist() == [2, 5, 9, 9]
    # the same shapes with another layout
    (o,) = copy(**{**CALL, "inputs": [X]})
    (transposed,) = copy(**{**CALL, "inputs": [X.reshape(16, 16).T]})
    assert o.tolist() == [0, 1, 2, 3] and transposed.tolist() == [0, 16, 32, 48]


def test_templates_of_the_same_value(copy):
    """1 and True are equal, but not the same template argument."""
    kernel = simulator.metal_kernel("size", ["x"], ["o"], INDEX + "o[i] = sizeof(V) + 0 * x[0];")
    for value, size in ((1, 4), (True, 1), (1, 4)):
        source = kernel.definition["source"].replace("sizeof(V)", "sizeof(decltype(V))")
        typed = simulator.metal_kernel("size", ["x"], ["o"], source)
        (o,) = typed(**CALL, template=[("V", value)])
        assert o[0].item() == size


def test_a_relative_cache(tmp_path, monkeypatch, copy):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(disk_cache.VARIABLE, "cache")
    assert disk_cache.folder() == tmp_path / "cache"
    assert copy(**CALL)[0].tolist() == [0, 1, 2, 3]
    assert list((tmp_path / "cache").glob("kernel-*.so"))


def test_listeners_are_told(copy):
    told = []
    bad = simulator.metal_kernel("bad", ["x"], ["o"], INDEX + "o[i] = x[i + 256];")
    broken = simulator.metal_kernel("broken", ["x"], ["o"], "\n o[0] = y;")
    with simulator.listen(lambda kernel, report: told.append((kernel, report))):
        copy(**CALL)
        with pytest.raises(simulator.SimulationError):
            bad(**CALL)
        with pytest.raises(simulator.CompileError):
            broken(**CALL)
    copy(**CALL)
    assert [kernel for kernel, _ in told] == [copy, bad, broken]
    assert [sorted(report.kinds) for _, report in told] == [
        [],
        ["out-of-bounds"],
        ["compile-error"],
    ]
    (finding,) = broken.report.findings
    assert (finding.file, finding.line) == ("source", 2) and "undeclared" in finding.message


def test_verbose(copy, capsys):
    copy(**CALL, verbose=True)
    broken = simulator.metal_kernel("broken", ["x"], ["o"], "o[0] = y;")
    with pytest.raises(simulator.CompileError):
        broken(**CALL, verbose=True)
    printed = capsys.readouterr().out
    assert printed.count("Generated source code for `") == 2
    assert "o[i] = x[i];" in printed and "o[0] = y;" in printed


def test_the_place_that_made_a_kernel(copy):
    assert copy.made_at[0] == __file__
    made_on = Path(__file__).read_text().split("\n")[copy.made_at[1] - 1]
    assert 'simulator.metal_kernel("copy"' in made_on


def test_a_grid_of_threadgroups():
    finding = kinds(INDEX + "o[i] = x[i];", threads=2, group=32)["unwritten-output"]
    assert "the grid counts threads: (2, 1, 1) launched 1 threadgroup of 2, not of 32" in (
        finding.message
    )
    assert "the grid" not in kinds("o[0] = 1;", threads=64)["unwritten-output"].message


def test_strides_ignored():
    columns = {"x": X.reshape(16, 16).T}
    as_it_is = {"ensure_row_contiguous": False}
    source = INDEX + "o[i] = x[i];"
    finding = kinds(source, inputs=columns, make=as_it_is)["strides-ignored"]
    assert finding.buffer == "x" and "x of shape (16, 16) is not contiguous" in finding.message
    assert "strides-ignored" in simulator.FATAL
    assert kinds(source, inputs=columns) == {}
    assert kinds(source, make=as_it_is) == {}
    used = INDEX + "o[i] = x[i % 16 * x_strides[1]];"
    assert kinds(used, inputs=columns, make=as_it_is) == {}


def test_too_many_buffers():
    inputs = {f"x{i}": mx.zeros(8) for i in range(31)}
    source = INDEX + "o[i] = " + " + ".join(f"{name}[0]" for name in inputs) + ";"
    finding = kinds(source, inputs=inputs)["too-large"]
    assert "32 buffers" in finding.message and "takes 31" in finding.message
    del inputs["x30"]
    assert kinds(source.replace(" + x30[0]", ""), inputs=inputs) == {}


def test_special_values_in_fast_math():
    source = INDEX + "float m = -INFINITY;\n m = max(m, x[i]); o[i] = isnan(m) ? 0 : m;"
    fast = {"compile_options": {"math_mode": "fast"}}
    _, report = launch(source, make=fast)
    assert [(f.kind, f.line) for f in report.findings] == [
        ("fast-math-nan", 1),
        ("fast-math-nan", 2),
    ]
    _, report = launch(source)
    assert report.findings == []


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("float g(int n);\nfloat f(int n) { return n ? g(n - 1) : 0; }\n"
         "float g(int n) { return f(n); }\n", "'f' calls itself through 'g'"),
        ("float f(float x) { return x; }\nfloat g() { float (*p)(float) = f; return p(1); }\n",
         "'p' is a pointer to a function"),
        ("float* f() { return new float; }\n", "Metal has no new"),
    ],
)  # fmt: skip
def test_lint_of_functions(header, message):
    assert any(message in finding.message for finding in simulator.lint("", header))


def test_new_is_not_an_error_of_the_loader():
    with pytest.raises((simulator.SimulationError, simulator.CompileError), match="new"):
        launch(INDEX + "o[i] = *(new float(1));")


def test_orders_that_agree_but_for_rounding():
    """A sum of atomics has another rounding in another order; one that is written does not."""
    source = INDEX + (
        "atomic_fetch_add_explicit((device atomic_float*)o, x[i] * 0.1f, memory_order_relaxed);"
    )
    call = {"init_value": 0.0}
    _, report = launch(source, threads=256, group=256, count=1, call=call, orders=4)
    assert report.kinds == {"schedule-rounding"}
    assert "schedule-rounding" not in simulator.FATAL
    _, report = launch(INDEX + "o[i] = x[i];", orders=4)
    assert report.findings == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"orders": 0}, "orders is 0; allowed are 1, 2"),
        ({"order": "up"}, "order is 'up'; allowed are forward"),
        ({"fatal": ["race"]}, "no such kind of finding: race"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message), simulator.options(**options):
        pass
