"""What of Metal compiles, runs and is refused: the probes behind docs/metal-coverage.md."""

from __future__ import annotations

import re

import mlx.core as mx
import numpy as np
import pytest
from coverage_page import PAGE, page
from launches import INDEX, X, launch
from mlx_headers import FOLDER, GROUPS, PRODUCT, TENSORS
from probes import CHAPTERS, FREE, Chapter

from fm_mlx.metal_kernels import simulator


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.title)
def test_runs(chapter: Chapter):
    probes = chapter.numbers()
    o, _ = launch(
        f"{INDEX}\n{chapter.source()}",
        threads=32,
        group=32,
        count=len(probes) + FREE,
        make={"header": chapter.header},
        call={"init_value": 0},
        fatal=(),
    )
    wrong = [
        f"{code}\n    is {value}, not {wanted}"
        for (code, wanted), value in zip(probes, o.tolist(), strict=False)
        if value != pytest.approx(wanted, rel=1e-6, abs=1e-6)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("words", "code"),
    [refused for chapter in CHAPTERS for refused in chapter.refused.values()],
    ids=[feature for chapter in CHAPTERS for feature in chapter.refused],
)
def test_is_refused_with_its_line(words, code):
    with pytest.raises(ValueError, match=f"^source:2: {re.escape(words)}$"):
        launch(f"\n{code}")
    with pytest.raises(ValueError, match=f"^header:3: {re.escape(words)}$"):
        launch("o[0] = 0;", make={"header": f"\n\n{code}\n"})


@pytest.mark.parametrize(
    ("code", "header"),
    [(code, chapter.header) for chapter in CHAPTERS for code in chapter.missing.values()],
    ids=[feature for chapter in CHAPTERS for feature in chapter.missing],
)
def test_is_missing(code, header):
    """What compiles one day becomes a probe that runs."""
    with pytest.raises(simulator.CompileError):
        launch(INDEX + code, make={"header": header})


def test_the_page_says_so():
    """`python tests/simulator/coverage_page.py` writes it."""
    assert PAGE.read_text() == page()


def included(*names: str) -> dict[str, str]:
    return {"header": "".join(f'#include "{FOLDER}{name}.h"\n' for name in names)}


@pytest.mark.parametrize("group", GROUPS)
def test_headers_of_mlx(group):
    o, _ = launch(INDEX + "o[i] = x[i];", make=included(*GROUPS[group]))
    assert mx.array_equal(o, X[:64])


@pytest.mark.parametrize("name", TENSORS)
def test_headers_with_tensors_are_refused(name):
    make = included("defines", name)
    with pytest.raises(ValueError, match=r"^header:2: Metal 4 tensors, which .* are not simulated"):
        launch("o[0] = 0;", make=make)


def test_functions_of_mlx():
    """Functions of MLX's headers in a kernel of one's own."""
    o, _ = launch(
        INDEX
        + """
        complex64_t z = Exp{}(complex64_t{0, x[i]}) + Add{}(complex64_t(1.0f), complex64_t(1.0f));
        Sum<float> sum; float total = sum.simd_reduce(x[i]);
        o[i] = z.real + Sigmoid{}(x[i] - 3) + Divide{}(x[i], 2.0f) + total;
        o[i] += float(fp8_e4m3(2.0f)) + float(fp4_e2m1(1.5f));""",
        threads=32,
        group=32,
        count=32,
        make=included("unary_ops", "binary_ops", "atomic", "reduction/ops", "fp4"),
    )
    x = np.arange(32)
    wanted = np.cos(x) + 2 + 1 / (1 + np.exp(3 - x)) + x / 2 + x.sum() + 3.5
    np.testing.assert_allclose(np.array(o), wanted, rtol=1e-5)


def test_quantized_product_of_mlx():
    """MLX's own matrix-vector product of a quantized matrix, against its operation."""
    rows, columns = 16, 512
    w = mx.random.normal((rows, columns), key=mx.random.key(0))
    v = mx.random.normal((columns,), key=mx.random.key(1))
    packed, scales, biases = mx.quantize(w, group_size=64, bits=4)
    inputs = {
        "w": packed, "scales": scales, "biases": biases, "v": v, "columns": columns, "rows": rows,
    }  # fmt: skip
    kernel = simulator.metal_kernel(
        "k",
        list(inputs),
        ["o"],
        """qmv_fast_impl<float, 64, 4>(w, scales, biases, v, o, columns, rows,
            threadgroup_position_in_grid, simdgroup_index_in_threadgroup,
            thread_index_in_simdgroup);""",
        **included(*PRODUCT),
    )
    (o,) = kernel(
        inputs=list(inputs.values()),
        output_shapes=[(rows,)],
        output_dtypes=[mx.float32],
        grid=(64, rows // 8, 1),
        threadgroup=(64, 1, 1),
    )
    wanted = mx.quantized_matmul(v[None], packed, scales, biases, group_size=64, bits=4)[0]
    np.testing.assert_allclose(np.array(o), np.array(wanted), rtol=1e-4, atol=1e-4)
    assert not kernel.report.findings
