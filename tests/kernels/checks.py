"""Each kernel against its oracle, as functions: test_kernel_mutants.py runs them as well.

Inputs are rounded to the dtype under test first, so that the oracle sees what the kernel
sees; what is left is the arithmetic, and for outputs of that dtype its last rounding.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import oracles
from cases import close, routed, same_bits
from oracles import EPS

from fm_mlx import ops, reference
from fm_mlx.metal_kernels import add_rms_norm as norm_kernels
from fm_mlx.metal_kernels import chunk_scan as chunk_kernels
from fm_mlx.metal_kernels import route as route_kernels
from fm_mlx.metal_kernels import sparse_update as update_kernels
from fm_mlx.metal_kernels import state_pass as pass_kernels

# Relative to the largest number of the output. Measured: 1e-7 (route, state_pass), 4e-7.
TOLERANCE = 2e-6

# Of outputs in a 16-bit dtype: half a unit in the last place.
ROUNDING = {mx.float32: TOLERANCE, mx.float16: 2**-11, mx.bfloat16: 2**-8}

# Gradients are sums of up to 32 x 200 terms of both signs. Measured: 8e-7 of the largest.
GRADIENT_TOLERANCE = 5e-6

# At d = 1 a row passes through 0 now and then, where the norm in the root is a difference
# of nearly equal float32 numbers. Measured: 7e-3 (values) and 2e-2 (gradients).
CANCELLING = 2e-2
CANCELLING_GRADIENT = 5e-2


def rounded(x: np.ndarray, dtype: mx.Dtype) -> mx.array:
    return mx.array(x.astype(np.float32)).astype(dtype)


def plain(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32))


def relative(got, wanted, tolerance: float, what: str) -> float:
    """Assert the largest error to be `tolerance` of the largest number wanted."""
    scale = max(float(np.abs(wanted).max(initial=0)), 1e-3)
    return close(np.array(got) / scale, np.array(wanted) / scale, tolerance, what)


def logits_with_ties(tokens: int, rows: int, seed: int = 0) -> np.ndarray:
    """(tokens, m + 2): every other token has three levels of logits only."""
    rng = np.random.default_rng(seed)
    routing = rng.normal(size=(tokens, rows + 2)) * 3
    routing[::2, :-2] = np.round(routing[::2, :-2] / 3).clip(-1, 1)
    return routing


def route(routing: mx.array, num_active: int, temperature: float = 0.5) -> float:
    """The kernel route_dense."""
    wanted, *dense_wanted = oracles.route(plain(routing), num_active, temperature)
    dense = route_kernels.route_dense(routing, num_active, temperature)
    errors = [0.0]
    for name, got, dense_of in zip(("theta", "phi"), dense, dense_wanted, strict=True):
        errors.append(close(got, dense_of, TOLERANCE, f"dense {name}"))
        idle = np.ones_like(dense_of, bool)
        np.put_along_axis(idle, wanted, False, -1)
        assert not np.array(got)[idle].any(), f"{name} of idle rows"
    return max(errors)


def some_rows(rng: np.random.Generator, batch: int, rows: int, count: int) -> np.ndarray:
    """Different rows of a memory, rising: (B, count) int32."""
    chosen = [np.sort(rng.permutation(rows)[:count]) for _ in range(batch)]
    return np.stack(chosen).astype(np.int32)


def sparse_update(
    shape: tuple[int, int, int],
    num_active: int,
    dtype: mx.Dtype = mx.float32,
    mask: list[bool] | None = None,
    seed: int = 0,
    temperature: float = 0.5,
    product_keys: bool = False,
) -> float:
    """The kernel sparse_update on (B, m, d). A masked token's value and scores are NaN."""
    batch, rows, width = shape
    rng = np.random.default_rng(seed)
    scores = logits_with_ties(batch, ops.num_logits(rows, product_keys), seed)
    if product_keys:  # sums that float32 holds: a stable sort of them is what is wanted
        scores = np.round(scores * 64) / 64
    value = rng.normal(size=(batch, width))
    state = rng.normal(size=shape).astype(np.float32)
    last = some_rows(rng, batch, rows, num_active)
    if seed % 2:  # behind those of the token before
        last = np.concatenate([some_rows(rng, batch, rows, num_active), last], axis=1)
    last_rows = rng.normal(size=(*last.shape, width)).astype(np.float32)
    real = np.ones(batch, bool) if mask is None else np.array(mask)
    value[~real] = scores[~real] = np.nan
    v, s = rounded(value, dtype), rounded(scores, mx.float32)
    indices, written, y = update_kernels.sparse_update(
        s,
        v,
        *map(mx.array, (state, last, last_rows)),
        None if mask is None else mx.array(mask),
        num_active,
        temperature,
        product_keys,
        EPS,
    )
    assert (indices.dtype, written.dtype, y.dtype) == (mx.int32, mx.float32, dtype)
    last, last_rows = last[:, -num_active:], last_rows[:, -num_active:]
    older, own = np.split(np.array(indices), 2, axis=1)
    older_rows, own_rows = np.split(np.array(written), 2, axis=1)
    same_bits(older, last, "rows of the last token")
    of_rows = np.where(real[:, None], plain(s), 0)
    if product_keys:
        logits = reference.product_logits(of_rows[:, :-2])
        of_rows = np.concatenate([logits, of_rows[:, -2:]], axis=1)
    wanted, *weights = oracles.route(of_rows, num_active, temperature)
    same_bits(own[real], wanted[real].astype(np.int32), "rows of the token")
    weights = [np.take_along_axis(weight, own, -1) for weight in weights]
    for b in range(batch):
        assert (np.diff(own[b]) > 0).all() and own[b][0] >= 0 and own[b][-1] < rows
        as_now = dict(zip(own[b].tolist(), own_rows[b], strict=True))
        for slot, row in enumerate(older[b].tolist()):
            before = last_rows[b, slot]
            same_bits(older_rows[b, slot], as_now.get(row, before), "what the last token wrote")
        if not real[b]:
            same_bits(own_rows[b], state[b][own[b]], "rows of a masked token")
            assert not plain(y[b]).any(), "y of a masked token"
    wanted_rows, y_wanted = oracles.sparse_update(own, *weights, plain(v), state, mask)
    return max(
        relative(own_rows, wanted_rows, TOLERANCE, "rows"),
        close(plain(y), y_wanted, ROUNDING[dtype], "y"),
    )


def add_rms_norm(tokens: int, hidden: int, dtype: mx.Dtype = mx.float32, seed: int = 0) -> float:
    """The kernel add_rms_norm, on rows of small numbers too, where eps counts."""
    rng = np.random.default_rng(seed)
    scale = np.where(np.arange(tokens) % 2, 1e-3, 1)[:, None]
    x, update = (rounded(rng.normal(size=(tokens, hidden)) * scale, dtype) for _ in range(2))
    weight = rng.uniform(0.5, 2, size=hidden).astype(np.float32)
    total, normed = norm_kernels.add_rms_norm(x, update, mx.array(weight), EPS)
    assert (total.dtype, normed.dtype) == (dtype, dtype)
    same_bits(plain(total), plain(x + update), "total")
    *again, in_float = norm_kernels.add_rms_norm(x, update, mx.array(weight), EPS, in_float=True)
    assert in_float.dtype == mx.float32
    for a, b in zip([*again, in_float], [total, normed, normed.astype(mx.float32)], strict=True):
        same_bits(plain(a), plain(b), "with the norm in float32")
    wanted = oracles.add_rms_norm(plain(total), weight)
    # each by its own size: by the largest, most numbers could be rounded twice unnoticed
    size = np.abs(wanted) + 1e-3
    return close(plain(normed) / size, wanted / size, ROUNDING[dtype], "normed")


def state_pass(shape: tuple[int, int, int, int], reverse: bool = False, seed: int = 0) -> float:
    """The kernel state_pass on (B, N, m, d)."""
    batch, _, rows, width = shape
    rng = np.random.default_rng(seed)
    decay = rng.uniform(size=shape[:3]).astype(np.float32)
    decay[:, ::3, ::2] = 0  # rows overwritten
    increment = rng.normal(size=shape).astype(np.float32)
    state = rng.normal(size=(batch, rows, width)).astype(np.float32)
    got = pass_kernels.state_pass(*map(mx.array, (decay, increment, state)), reverse=reverse)
    wanted = oracles.state_pass(decay, increment, state, reverse)
    return max(map(relative, got, wanted, [TOLERANCE] * 2, ("starts", "last")))


def state_over_many_chunks(decay: float, chunks: int) -> float:
    """The kernel state_pass with one decay for all chunks; measured 6e-8 for any."""
    rng = np.random.default_rng(0)
    decays = np.full((1, chunks, 2), decay, np.float32)
    increment = rng.normal(size=(1, chunks, 2, 3)).astype(np.float32)
    state = rng.normal(size=(1, 2, 3)).astype(np.float32)
    got = pass_kernels.state_pass(*map(mx.array, (decays, increment, state)))
    wanted = oracles.state_pass(decays, increment, state)
    return max(map(relative, got, wanted, [2e-7] * 2, ("starts", "last")))


def chunks(
    shape: tuple[int, int, int, int, int], num_active: int, seed: int = 0
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Inputs of chunk_scan for (B, N, C, m, d), and the values and states they are made of."""
    batch, count, tokens, rows, width = shape
    case = routed((batch * count, tokens, rows, width), num_active, seed)
    theta, phi, values = (
        x.reshape(batch, count, tokens, -1) for x in (case.theta, case.phi, case.values)
    )
    start = case.state.reshape(batch, count, rows, width)
    gram = values @ values.swapaxes(-1, -2)
    projection = values @ start.swapaxes(-1, -2)
    return [theta, phi, gram, projection, np.square(start).sum(-1)], values, start


def chunk_scan(shape: tuple[int, int, int, int, int], num_active: int, seed: int = 0) -> float:
    """The kernel chunk_scan on (B, N, C, m, d)."""
    inputs, values, start = chunks(shape, num_active, seed)
    got = chunk_kernels.chunk_scan(*map(mx.array, inputs), shape[-1], EPS)
    wanted = oracles.chunk_scan(*inputs[:2], values, start)
    tolerance = TOLERANCE if shape[-1] > 1 else CANCELLING
    return max(map(relative, got, wanted, [tolerance] * 2, ("qA", "M")))


def chunk_scan_vjp(shape: tuple[int, int, int, int, int], num_active: int, seed: int = 0) -> float:
    """The kernel chunk_scan_vjp on (B, N, C, m, d)."""
    inputs, _, _ = chunks(shape, num_active, seed)
    rng = np.random.default_rng(seed + 1)
    cotangents = [rng.normal(size=x.shape).astype(np.float32) for x in (inputs[0], inputs[2])]
    got = chunk_kernels.chunk_scan_vjp(*map(mx.array, [*inputs, *cotangents]), shape[-1], EPS)
    wanted = oracles.chunk_scan_vjp(inputs, cotangents, shape[-1])
    # what lies above the diagonal of G and of M's cotangent is neither read nor given
    tolerance = GRADIENT_TOLERANCE if shape[-1] > 1 else CANCELLING_GRADIENT
    names = ("theta", "phi", "gram", "projection", "norm0")
    return max(map(relative, got, wanted, [tolerance] * 5, names))


def scan_gradients(
    shape: tuple[int, int, int, int],
    num_active: int,
    dtype: mx.Dtype = mx.float32,
    masked: bool = False,
) -> list[np.ndarray]:
    """Gradients of theta, phi, values and state through memory_scan, as the caller has it."""
    case = routed(shape, num_active)
    theta, phi, values, state, _ = case.arrays()
    mask = mx.arange(shape[1]) < mx.arange(shape[0])[:, None] + 1 if masked else None
    rng = np.random.default_rng(9)
    weight = [mx.array(rng.normal(size=x.shape).astype("f")) for x in (values, state)]

    def loss(theta, phi, values, state):
        y, last = ops.memory_scan(theta, phi, values, state, mask)
        return (y.astype(mx.float32) * weight[0]).sum() + (last * weight[1]).sum()

    gradients = mx.grad(loss, argnums=(0, 1, 2, 3))(theta, phi, values.astype(dtype), state)
    return [plain(x) for x in gradients]
