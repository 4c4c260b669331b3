"""NaN where it is made and compared, with `options(nan=True)`, and halves that overflow."""

from __future__ import annotations

import mlx.core as mx
import pytest
from launches import INDEX, X, launch

NAN = mx.full((64,), mx.nan)


def kinds(source: str, **more) -> set[str]:
    _, report = launch(INDEX + source, fatal=(), **more)
    return report.kinds


MADE = {
    "zero by zero": "float z = x[0]; o[i] = z / z;",
    "infinities": "float b = x[255] * 3e38f; o[i] = b - b;",
    "times infinity": "float b = x[255] * 3e38f; o[i] = b * x[0];",
    "remainder": "o[i] = fmod(x[i], x[0]);",
    "logarithm": "o[i] = log(x[i] - 1);",
    "power": "o[i] = pow(x[i] - 2, 0.5f);",
    "half": "half z = half(x[0]); o[i] = z / z;",
    "one of a vector": "float4 v = float4(1, 2, 0, 3); v = v / float4(1, 1, x[0], 1); o[i] = v.z;",
    "a vector's function": "float2 v = sqrt(float2(1, x[0] - 1)); o[i] = v.y;",
}


@pytest.mark.parametrize("source", MADE.values(), ids=MADE)
def test_made(source):
    assert kinds(source, nan=True) == {"nan-made"}
    assert kinds(source) == set()


@pytest.mark.parametrize("sign", ["<", ">", "<=", ">="])
def test_compared(sign):
    source = f"o[i] = x[i] {sign} 1;"
    assert kinds(source, nan=True, inputs={"x": NAN}) == {"nan-compared"}
    assert kinds(source, inputs={"x": NAN}) == set()


@pytest.mark.parametrize(
    "source",
    [
        "o[i] = x[i] + 1;",  # NaN of NaN
        "o[i] = sqrt(x[i]);",
        "o[i] = x[i] != x[i];",
        "o[i] = isnan(x[i]);",
        "o[i] = max(x[i], 1.0f) + fmin(x[i], 2.0f);",
        "o[i] = isnan(x[i]) ? 0 : x[i] - 1;",
    ],
)
def test_nan_that_is_handed_on(source):
    assert kinds(source, nan=True, inputs={"x": NAN}) == set()


def test_infinities_are_no_nan():
    source = "float b = x[255] * 3e38f; o[i] = exp(-b) + b + b * 2 + 1 / b;"
    assert kinds(source, nan=True) == set()


@pytest.mark.parametrize(
    "source",
    [
        "half4 v = half4(300); v = v * half4(1, 1, half(x[250]), 1); o[i] = v.z;",
        "half2 v = half2(float2(1, x[255] * 300)); o[i] = v.y;",
        "half h = half(1) / half(x[0] + 1e-5f); o[i] = h;",
    ],
)
def test_half_overflow(source):
    assert kinds(source) == {"half-overflow"}


@pytest.mark.parametrize(
    "source",
    [
        "half4 v = half4(300); v = v * half4(1, 2, half(x[2]), 1); o[i] = v.z;",
        "half2 v = half2(INFINITY); v = v * half2(2); o[i] = v.y;",
        "half h = half(1) / half(x[0]); o[i] = h;",  # a pole, as in float
    ],
)
def test_halves_that_fit_or_were_infinite(source):
    assert kinds(source) == set()


def test_line_of_the_user():
    _, report = launch(INDEX + "\n\no[i] = sqrt(x[i] - 3);", fatal=(), nan=True)
    (finding,) = report.findings
    assert (finding.kind, finding.file, finding.line, finding.count) == ("nan-made", "source", 3, 3)
    assert mx.isnan(X[:1] * mx.inf).item()  # the same in MLX
