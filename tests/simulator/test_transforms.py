"""Kernels inside of mx.compile, mx.vmap, gradients and exports: as MLX has them, or refused."""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import pytest

from fm_mlx.metal_kernels import simulator
from fm_mlx.metal_kernels.simulator.mac import transforms

X = mx.arange(8).astype(mx.float32)

DOUBLE = simulator.metal_kernel(
    name="twice",
    input_names=["x"],
    output_names=["y"],
    source="uint i = thread_position_in_grid.x; y[i] = 2 * x[i];",
)


def twice(x: mx.array) -> mx.array:
    (y,) = DOUBLE(
        inputs=[x],
        grid=(x.size, 1, 1),
        threadgroup=(8, 1, 1),
        output_shapes=[x.shape],
        output_dtypes=[x.dtype],
    )
    return y


@mx.custom_function
def twice_with_vjp(x: mx.array) -> mx.array:
    return twice(x)


@twice_with_vjp.vjp
def _(x, cotangent, _):
    return twice(cotangent)


def test_compile_on_the_mac():
    compiled = mx.compile(lambda x: twice(x) + 1)  # before it is known that kernels are simulated
    state = [mx.array(1.0)]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(x):
        state[0] = state[0] + twice(x).sum()
        return state[0]

    with simulator.redirected():
        mx.enable_compile()  # a script that says so is not obeyed
        assert compiled(X).tolist() == (2 * X + 1).tolist()
        assert mx.compile(twice, shapeless=True)(X).tolist() == (2 * X).tolist()
        assert [step(X).item(), step(X).item()] == [57, 113]
        assert state[0].item() == 113
    assert transforms.compiles()


def test_compile_elsewhere_says_what_to_do():
    with pytest.raises(ValueError, match=r"compiled\s+inside of simulator\.redirected\(\) only"):
        mx.compile(twice)(X)
    mx.disable_compile()
    try:
        with simulator.redirected():
            pass
        assert mx.compile(twice)(X).tolist() == (2 * X).tolist()
    finally:
        mx.enable_compile()


def test_vmap_raises_what_mlx_raises():
    with (
        simulator.redirected(),
        pytest.raises(
            ValueError, match=r"^\[Primitive::vmap\] Not implemented for CustomKernel\.$"
        ),
    ):
        mx.vmap(twice)(mx.zeros((2, 8)))


@pytest.mark.parametrize(
    ("rule", "differentiate"),
    [
        ("vjp", lambda f: mx.grad(lambda x: f(x).sum())(X)),
        ("vjp", lambda f: mx.value_and_grad(lambda x: (f(2 * x) * x).sum())(X)),
        ("vjp", lambda f: mx.vjp(f, [X], [X])),
        ("vjp", lambda f: mx.grad(lambda x: mx.checkpoint(f)(x).sum())(X)),
        ("jvp", lambda f: mx.jvp(f, [X], [X])),
    ],
    ids=["grad", "value_and_grad", "vjp", "checkpoint", "jvp"],
)
def test_gradients_raise_what_mlx_raises(rule, differentiate):
    message = rf"^\[Primitive::{rule}\] Not implemented for CustomKernel\.$"
    with pytest.raises(ValueError, match=message):
        differentiate(twice)


def test_gradients_that_do_not_pass_through():
    assert mx.grad(lambda x: (mx.stop_gradient(twice(x)) * x).sum())(X).tolist() == (2 * X).tolist()
    constant = twice(X)
    assert mx.grad(lambda x: (constant * x).sum())(X).tolist() == (2 * X).tolist()
    layer = nn.Linear(8, 8)
    value, _ = nn.value_and_grad(layer, lambda x: layer(twice(x)).sum())(X)
    assert value.shape == ()


def test_gradients_with_a_vjp_of_kernels():
    assert mx.grad(lambda x: (twice_with_vjp(x) * X).sum())(X).tolist() == (2 * X).tolist()
    second = mx.grad(lambda x: (mx.grad(lambda y: twice_with_vjp(y).sum())(x) * x).sum())
    assert second(X).tolist() == [2] * 8


def test_an_export_holds_the_kernel():
    records: list[dict] = []
    mx.export_function(records.append, twice, X)
    assert "CustomKernel" in {record.get("name") for record in records}
