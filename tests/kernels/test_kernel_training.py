"""Gradients and training through the simulated kernels = those of the ops form."""

from __future__ import annotations

import checks
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from cases import REAL, close, tiny_model, tokens

from fm_mlx import ops
from fm_mlx.metal_kernels import launch
from fm_mlx.metal_kernels.catalogue import KERNELS

# Gradients through the kernels against the float64 chunk form, relative to the largest.
TOLERANCE = 5e-6

SCAN_KERNELS = (KERNELS["state_pass"], KERNELS["chunk_scan"], KERNELS["chunk_scan_vjp"])


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("shape", "num_active"),
    [((1, 1, 5, 33), 2), ((3, 33, 5, 33), 1), ((1, 70, 64, 16), 8), ((2, 64, 1, 7), 1)],
)
def test_gradients_are_those_of_the_ops(shape, num_active, masked, dtype):
    got = checks.scan_gradients(shape, num_active, dtype, masked)
    with launch.using("ops"):
        wanted = checks.scan_gradients(shape, num_active, dtype, masked)
    rounding = 0 if dtype == mx.float32 else checks.ROUNDING[dtype] * 2
    for name, a, b in zip(("theta", "phi", "values", "state"), got, wanted, strict=True):
        checks.relative(a, b, TOLERANCE + rounding * (name == "values"), f"gradient of {name}")


@pytest.mark.parametrize("mask", [None, [True, False]])
def test_gradients_of_the_sparse_update(mask):
    rng = np.random.default_rng(0)
    indices = mx.array([[1, 4], [0, 2]], dtype=mx.int32)
    shapes = (2, 1, 8), (2, 1, 9), (2, 6, 9), (2, 2, 9)
    smooth = [mx.array(rng.uniform(size=shape).astype("f")) for shape in shapes]
    keep = None if mask is None else mx.array(mask)[:, None]

    def loss(scores, value, state, rows):
        last = ops.Write(indices, rows)
        write, y = ops.sparse_update(last, scores, value, state, keep, num_active=2)
        return y.square().sum() + write.rows.square().sum()

    got = mx.grad(loss, argnums=(0, 1, 2, 3))(*smooth)
    with launch.using("ops"):
        wanted = mx.grad(loss, argnums=(0, 1, 2, 3))(*smooth)
    for a, b in zip(got, wanted, strict=True):
        assert mx.abs(b).max() > 0
        close(a, b, TOLERANCE, "gradient")


def trained(steps: int) -> list[float]:
    """Losses of a tiny model that is trained on one batch."""
    model = tiny_model(REAL)
    optimizer = optim.AdamW(learning_rate=1e-2)
    ids = tokens((2, 41))

    def loss(model):
        return nn.losses.cross_entropy(model(ids[:, :-1]), ids[:, 1:], reduction="mean")

    losses = []
    for _ in range(steps):
        value, gradients = nn.value_and_grad(model, loss)(model)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        losses.append(value.item())
    return losses


def test_training_follows_the_ops():
    for kernel in SCAN_KERNELS:
        kernel.simulated.report = None
    losses = trained(20)
    ran = [
        kernel.simulated.report is not None for kernel in (*SCAN_KERNELS, KERNELS["route_dense"])
    ]
    assert all(ran), ran
    with launch.using("ops"):
        wanted = trained(20)
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, ops {wanted[-1]:.4f}")
    assert losses[-1] < losses[0] / 2
    np.testing.assert_allclose(losses, wanted, rtol=2e-4)
