"""The PyTorch reference against the NumPy oracle, which was written apart from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fm_mlx import reference
from fm_mlx.convert.torch_reference import affinity, step_loop, vector_scan

EPS = 1e-6


def inputs(length: int, rows: int = 5, width: int = 7, batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)

    def random(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    write, merge = random(2, batch, length, rows)
    return [write, merge, random(batch, length, width) - 0.5, random(batch, rows, width) - 0.5]


@pytest.mark.parametrize("length", [1, 15, 16, 17, 70])
@pytest.mark.parametrize("overwrite", [False, True])
def test_scan_is_the_loop_is_the_oracle(length, overwrite):
    write, merge, values, state = inputs(length)
    if overwrite:
        write[:, ::3, 1] = 1.0
    got = vector_scan(write, merge, values, state, EPS)
    loop = step_loop(write, merge, values, state, EPS)
    for a, b in zip(got, loop, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)
    for row in range(2):
        y, last = reference.memory_loop(
            *(x[row].numpy() for x in (write, merge, values, state)), EPS
        )
        np.testing.assert_allclose(loop[0][row].numpy(), y, atol=1e-12)
        np.testing.assert_allclose(loop[1][row].numpy(), last, atol=1e-12)


@pytest.mark.parametrize("num_active", [1, 3, 6])
def test_affinity_and_its_ties(num_active):
    scores = torch.tensor([[1.0, 2, 2, 0, 2, 1], [0, 0, 0, 0, 0, 0]], dtype=torch.float64)
    wanted = reference.affinity(scores.numpy(), num_active, 0.5)
    np.testing.assert_allclose(affinity(scores, num_active, 0.5).numpy(), wanted, atol=1e-15)


def test_gradients_of_the_scan_are_those_of_the_loop():
    arrays = [x.requires_grad_() for x in inputs(70)]

    def gradients(form):
        y, last = form(*arrays, EPS)
        return torch.autograd.grad((y * y.detach().cos()).sum() + last.square().sum(), arrays)

    for a, b in zip(gradients(vector_scan), gradients(step_loop), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-10)


def test_it_trains(trained):
    first, last = np.mean(trained.losses[:10]), np.mean(trained.losses[-10:])
    assert last < 0.6 * first, (first, last)


def test_states_carry_over(trained):
    tokens = torch.arange(90)[None] % 256
    with torch.no_grad():
        whole = trained.model(tokens)
        _, states = trained.model(tokens[:, :41], return_states=True)
        rest = trained.model(tokens[:, 41:], states)
        looped = trained.model(tokens, loop=True)
    assert torch.allclose(whole[:, 41:], rest, atol=2e-5)
    assert torch.allclose(whole, looped, atol=2e-5)
