"""Values: every kernel x dtype x odd shape x schedule = its float64 oracle, no finding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice, product

import checks
import mlx.core as mx
import numpy as np
import pytest
from cases import CANCELLING_TOLERANCE, EXTREMES, SCAN_TOLERANCE, close, extreme, loop, routed
from checks import rounded

from fm_mlx import ops
from fm_mlx.metal_kernels import launch

DTYPES = (mx.float32, mx.float16, mx.bfloat16)
CHUNK = 32
LENGTHS = (1, CHUNK - 1, CHUNK, CHUNK + 1)
ROWS = (1, 5, 64, 200)
WIDTHS = (1, 33, 256)
BATCHES = (1, 3)

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
all_rows = pytest.mark.parametrize("rows", ROWS)


def cases_of(schedule: str, *values: Iterable) -> Iterator[tuple]:
    """All combinations; in the other simulated orders, which change no value, every fifth."""
    return islice(product(*values), 0, None, 5 if schedule in ("reverse", "random") else 1)


def some_active(rows: int) -> list[int]:
    return sorted({1, (rows + 1) // 2, rows})


@dtypes
@all_rows
def test_route(schedule, dtype, rows):
    """Every k from 1 to m; ties; 1 and 3 tokens."""
    for (num_active,) in cases_of(schedule, range(1, rows + 1)):
        routing = checks.logits_with_ties(1 + 2 * (num_active % 2), rows, num_active)
        checks.route(rounded(routing, dtype), num_active)


def in_every_dtype(sizes: Sequence[int], of_16_bits: Sequence[int]) -> list:
    """Sizes x dtypes. Rows are chosen in float32 whatever the values are: of 16 bits some sizes
    are enough by default, the others run under `slow`."""
    cases = []
    for size, dtype in product(sizes, DTYPES):
        is_slow = dtype != mx.float32 and size not in of_16_bits
        cases.append(pytest.param(size, dtype, marks=[pytest.mark.slow] if is_slow else []))
    return cases


@pytest.mark.parametrize(("rows", "dtype"), in_every_dtype(ROWS, (5, 200)), ids=str)
def test_sparse_update(schedule, rows, dtype):
    """Every k from 1 to m at one width, every third in 16 bits; 1, half and all of m at others."""
    step = 1 if dtype == mx.float32 else 3
    masks = cycle([None, [True, False, True], None, [False] * 3, [True] * 3])
    for width in WIDTHS:
        active = range(1, rows + 1, step) if width == 33 else some_active(rows)
        batches = cycle(BATCHES)
        for (num_active,) in cases_of(schedule, active):
            mask, batch = next(masks), next(batches)
            shape = (batch, rows, width)
            checks.sparse_update(shape, num_active, dtype, mask and mask[:batch], num_active)


@pytest.mark.parametrize(("half", "dtype"), in_every_dtype((1, 2, 3, 8, 33), (8,)), ids=str)
def test_sparse_update_by_product_keys(schedule, half, dtype):
    """m = 1 to 1,089; more active rows than a half has, too."""
    masks = cycle([None, [True, False, True], [True] * 3])
    active = sorted({1, 2, half, half + 1, 2 * half} & {*range(1, half * half + 1)})
    for (num_active,) in cases_of(schedule, active):
        if num_active**2 > 1100:
            continue
        shape = (3, half * half, 33)
        checks.sparse_update(shape, num_active, dtype, next(masks), half, product_keys=True)


@dtypes
def test_add_rms_norm(schedule, dtype):
    for tokens, hidden in product((1, 3), (1, 31, 33, 256, 1030)):
        checks.add_rms_norm(tokens, hidden, dtype)


def test_add_rms_norm_of_unlike_arrays():
    """What the kernel does not take goes to its reference op: other dtypes, broadcast shapes."""
    x, weight = mx.ones((2, 3, 40), mx.bfloat16), mx.ones((40,))
    for update in (mx.ones((2, 3, 40)), mx.ones((1, 3, 40), mx.bfloat16)):
        got = ops.add_rms_norm(x, update, weight, 1e-6)
        with launch.using("ops"):
            wanted = ops.add_rms_norm(x, update, weight, 1e-6)
        assert [a.dtype for a in got] == [a.dtype for a in wanted]
        assert all(mx.array_equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_gradient_of_add_rms_norm():
    """Of every input, by the kernel and by the ops form, from both outputs."""
    x, update = mx.random.normal((2, 2, 3, 40), key=mx.random.key(0))
    weight = mx.random.uniform(0.5, 2, (40,), key=mx.random.key(1))
    cotangents = list(mx.random.normal((2, *x.shape), key=mx.random.key(2)))

    def gradients() -> list[mx.array]:
        def form(x, update, weight):
            return ops.add_rms_norm(x, update, weight, 1e-6)

        return mx.vjp(form, [x, update, weight], cotangents)[1]

    by_kernel = gradients()
    with launch.using("ops"):
        for got, wanted in zip(by_kernel, gradients(), strict=True):
            checks.relative(got, np.array(wanted), checks.GRADIENT_TOLERANCE, "gradient")


@pytest.mark.parametrize("reverse", [False, True])
def test_state_pass(schedule, reverse):
    for batch, chunks, rows, width in cases_of(schedule, BATCHES, (1, 2, 5), ROWS, (1, 33)):
        checks.state_pass((batch, chunks, rows, width), reverse)
    checks.state_pass((1, 3, 5, 256), reverse)


@all_rows
@pytest.mark.parametrize("check", [checks.chunk_scan, checks.chunk_scan_vjp], ids=["", "vjp"])
def test_chunk_scan(schedule, rows, check):
    counts = cycle([1, 2])
    for batch, tokens, width in cases_of(schedule, BATCHES, (1, CHUNK - 1, CHUNK), WIDTHS):
        for num_active in some_active(rows)[:: 1 if width == 33 else 2]:
            check((batch, next(counts), tokens, rows, width), num_active)


@dtypes
@all_rows
def test_memory_scan(schedule, dtype, rows):
    """The whole path through state_pass and chunk_scan: T, d, B, masks, carried state."""
    starts = cycle([True, False, True])
    masked = cycle([False, True, False, False, True])
    active = cycle(some_active(rows))
    for length, width, batch in cases_of(schedule, LENGTHS, WIDTHS, BATCHES):
        case = routed((batch, length, rows, width), next(active), empty=next(starts))
        case = replace(case, values=np.array(rounded(case.values, dtype).astype(mx.float32)))
        if next(masked):
            real = np.random.default_rng(length).uniform(size=(batch, length)) > 0.3
            case = replace(case, mask=real, values=np.where(real[..., None], case.values, 0))
        theta, phi, values, state, mask = case.arrays()
        y, last = ops.memory_scan(theta, phi, values.astype(dtype), state, mask)
        assert (y.dtype, last.dtype) == (dtype, mx.float32)
        wanted, state_wanted = loop(case)
        exact = CANCELLING_TOLERANCE if width == 1 else SCAN_TOLERANCE
        tolerance = max(exact, checks.ROUNDING[dtype])
        close(y.astype(mx.float32), wanted, tolerance, f"y at T = {length}, d = {width}")
        close(last, state_wanted, SCAN_TOLERANCE, f"state at T = {length}, d = {width}")


class TestPrecision:
    @pytest.mark.parametrize("kind", EXTREMES)
    def test_write_weights_near_and_at_1(self, kind):
        case = extreme(kind, (1, 100, 3, 8))
        theta, phi, values, state, _ = case.arrays()
        y, last = ops.memory_scan(theta, phi, values, state)
        wanted, state_wanted = loop(case)
        close(y, wanted, SCAN_TOLERANCE, "y")
        close(last, state_wanted, SCAN_TOLERANCE, "state")

    @pytest.mark.parametrize("decay", [0.5, 0.999, 1 - 2**-14, 1 - 2**-24, 1.0])
    def test_state_over_a_million_tokens(self, decay):
        checks.state_over_many_chunks(decay, 1_000_000 // CHUNK)

    def test_row_that_nobody_writes_keeps_its_bits(self):
        case = routed((1, 100, 4, 8), 4)
        theta, phi, values, state, _ = case.arrays()
        theta = theta * mx.array([1.0, 0.0, 1.0, 1.0])
        _, last = ops.memory_scan(theta, phi, values, state)
        assert np.array_equal(np.array(last)[:, 1], case.state[:, 1])
