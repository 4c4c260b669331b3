"""Inputs on which every kernel is compared with its reference op, for small and large models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx

from fm_mlx import ops
from fm_mlx.metal_kernels import launch
from fm_mlx.metal_kernels.add_rms_norm import add_rms_norm_cost
from fm_mlx.metal_kernels.chunk_scan import MAX_CHUNK, chunk_scan_cost, chunk_scan_vjp_cost
from fm_mlx.metal_kernels.cost import Cost
from fm_mlx.metal_kernels.launch import Backend
from fm_mlx.metal_kernels.route import route_dense_cost
from fm_mlx.metal_kernels.sparse_update import sparse_update_cost
from fm_mlx.metal_kernels.state_pass import state_pass_cost
from fm_mlx.ops.chunk_map import chunk_map
from fm_mlx.ops.state_pass import state_pass
from fm_mlx.support.arrays import dtype_name

_EPS = 1e-6


@dataclass(frozen=True)
class Check:
    """A kernel on some input.

    Attributes:
        file: The Metal file of the kernel.
        case: Shapes and dtype, for people.
        run: Computes the outputs, by the kernel or by the reference op as `launch.using` says.
        work: What the kernel's launches of a run move and compute.
        dtype: The dtype of the least precise output.
    """

    file: str
    case: str
    run: Callable[[], list[mx.array]]
    work: Cost
    dtype: mx.Dtype = mx.float32


def checks() -> Iterator[Check]:
    """Every kernel, on the shapes of small and large models."""
    for tokens, m, k, dtype in [(1, 64, 8, mx.bfloat16), (3, 4096, 8, mx.float32)]:
        yield _route(tokens, m, k, dtype)
    for batch, m, k, d, dtype in [(1, 64, 8, 2048, mx.bfloat16), (3, 300, 70, 200, mx.float32)]:
        yield _sparse_update(batch, m, k, d, dtype, masked=False)
    yield _sparse_update(3, 64, 8, 256, mx.float16, masked=True)
    for masked in (False, True):
        yield _sparse_update(3, 4096, 8, 256, mx.float32, masked, product_keys=True)
    for tokens, hidden, dtype in [(1, 2048, mx.bfloat16), (3, 250, mx.float32)]:
        yield _add_rms_norm(tokens, hidden, dtype)
    for shape in [(1, 16, 64, 32), (2, 5, 33, 50)]:
        yield _state_pass(*shape)
    for shape in [(1, 4, 64, 256, 8), (2, 2, 70, 50, 70)]:
        yield _chunk_scan(*shape)
        yield _chunk_scan_vjp(*shape)


def _route(tokens: int, m: int, k: int, dtype: mx.Dtype) -> Check:
    routing = _scores(tokens, m).astype(dtype)
    mx.eval(routing)
    case = f"{tokens} x {m}, k {k}, {dtype_name(dtype)}"
    work = route_dense_cost(tokens, m, dtype.size)
    return Check("route", case, lambda: list(ops.route_dense(routing, k, 0.5)), work)


def _scores(tokens: int, logits: int) -> mx.array:
    mx.random.seed(0)
    return 3 * mx.random.normal((tokens, logits + 2))


def _sparse_update(
    batch: int, m: int, k: int, d: int, dtype: mx.Dtype, masked: bool, product_keys: bool = False
) -> Check:
    logits = ops.num_logits(m, product_keys)
    scores = _scores(batch, logits)[:, None]
    value = mx.random.normal((batch, 1, d)).astype(dtype)
    state = mx.random.normal((batch, m, d))
    mask = mx.arange(batch)[:, None] > 0 if masked else None
    # of the last token, some of whose rows this one writes again
    indices = mx.broadcast_to(mx.arange(0, 2 * k, 2, dtype=mx.int32), (batch, k))
    last = ops.Write(indices, mx.random.normal((batch, k, d)))
    mx.eval(scores, value, state, mask, last)

    def run():
        write, y = ops.sparse_update(
            last, scores, value, state, mask, num_active=k, eps=_EPS, product_keys=product_keys
        )
        return [*write, y]

    case = f"{batch} x {m} x {d}, k {k}, {dtype_name(dtype)}"
    case += ", product keys" * product_keys + ", masked" * masked
    work = sparse_update_cost(batch, logits, k, d, dtype.size)
    return Check("sparse_update", case, run, work, dtype)


def _add_rms_norm(tokens: int, hidden: int, dtype: mx.Dtype) -> Check:
    mx.random.seed(0)
    x, update = mx.random.normal((2, tokens, hidden)).astype(dtype)
    weight = mx.random.uniform(shape=(hidden,))
    mx.eval(x, update, weight)
    case = f"{tokens} x {hidden}, {dtype_name(dtype)}"

    def run():
        outputs = [ops.add_rms_norm(x, update, weight, _EPS, in_float=i) for i in (False, True)]
        return [y for of_kernel in outputs for y in of_kernel]

    plain, in_float = (add_rms_norm_cost(tokens, hidden, dtype.size, i) for i in (False, True))
    return Check("add_rms_norm", case, run, plain + in_float, dtype)


def _state_pass(batch: int, chunks: int, m: int, d: int) -> Check:
    mx.random.seed(0)
    decay = mx.random.uniform(shape=(batch, chunks, m))
    increment = mx.random.normal((batch, chunks, m, d))
    state = mx.random.normal((batch, m, d))
    primals = [decay, increment, state]
    cotangents = [mx.random.normal(increment.shape), mx.random.normal(state.shape)]
    mx.eval(primals, cotangents)

    def run():
        outputs, gradients = mx.vjp(state_pass, primals, cotangents)
        return [*outputs, *gradients]

    work = state_pass_cost(batch, chunks, m, d) * 2
    return Check("state_pass", f"{batch} x {chunks} x {m} x {d}, both ways", run, work)


def _chunks(batch: int, chunks: int, m: int, d: int, k: int) -> tuple[list[mx.array], str]:
    """Inputs of `chunk_map` as a scan makes them."""
    mx.random.seed(0)
    shape = (batch, chunks, MAX_CHUNK)
    with launch.using(Backend.OPS):
        theta, phi = ops.route_dense(2 * mx.random.normal((*shape, m + 2)), k)
    values = mx.random.normal((*shape, d))
    start = mx.random.normal((batch, chunks, m, d))
    gram = values @ values.swapaxes(-1, -2)
    inputs = [theta, phi, gram, values @ start.swapaxes(-1, -2), start.square().sum(-1)]
    mx.eval(inputs)
    return inputs, f"{batch} x {chunks} x {MAX_CHUNK} x {m}, d {d}, k {k}"


def _chunk_scan(batch: int, chunks: int, m: int, d: int, k: int) -> Check:
    inputs, case = _chunks(batch, chunks, m, d, k)
    work = chunk_scan_cost(batch * chunks, MAX_CHUNK, m)
    return Check("chunk_scan", case, lambda: list(_scanned(d, *inputs)), work)


def _chunk_scan_vjp(batch: int, chunks: int, m: int, d: int, k: int) -> Check:
    inputs, case = _chunks(batch, chunks, m, d, k)
    cotangents = [mx.random.normal(inputs[0].shape), mx.random.normal(inputs[2].shape)]
    mx.eval(cotangents)

    def run():
        return list(mx.vjp(lambda *x: _scanned(d, *x), inputs, cotangents)[1])

    # forwards as well
    sizes = batch * chunks, MAX_CHUNK, m
    return Check("chunk_scan_vjp", case, run, chunk_scan_cost(*sizes) + chunk_scan_vjp_cost(*sizes))


def _scanned(width: int, *inputs: mx.array) -> tuple[mx.array, mx.array]:
    theta, phi, gram, projection, norm0 = inputs
    return chunk_map(theta, phi, gram, projection, norm0, width, _EPS)
