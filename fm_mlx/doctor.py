"""``fm-mlx doctor``: are the kernels right on this machine, and what do they gain?

Every kernel is run beside its twin in `fm_mlx.ops`, which is its specification. One that
fails or differs is switched off here (`fm_mlx.metal_kernels.verdicts`): from then on its twin
runs. The report is made to be pasted into an issue.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import mlx.core as mx

import fm_mlx
from fm_mlx import ops
from fm_mlx.metal_kernels import kernels, launch, verdicts
from fm_mlx.metal_kernels.launch import Backend
from fm_mlx.metal_kernels.sources import sources
from fm_mlx.ops.chunk_map import MAX_CHUNK, chunk_map
from fm_mlx.ops.state_pass import state_pass
from fm_mlx.tables import aligned
from fm_mlx.timing import device_line, seconds_of
from fm_mlx.update_cost import update_cost

# A memory that stays dense, the least that is kept in two buffers, and a large one.
ROWS = (64, 192, 4096)
_EPS = 1e-6
_TIMED_ROUNDS = 20
# Runs in one timed evaluation, so that handing it over to a GPU does not count.
_TOGETHER = 8

# Largest difference from the twin, relative to the twin's largest number: sums in another
# order, and in 16 bits one unit in the last place.
_TOLERANCE = {mx.float32: 1e-5, mx.float16: 2**-10, mx.bfloat16: 2**-7}


@dataclass(frozen=True)
class Check:
    """A kernel on some input.

    Attributes:
        file: the Metal file.
        case: shapes and dtype, for people.
        run: gives the outputs, by the kernel or the twin as `launch.using` says.
        dtype: of the least precise output.
    """

    file: str
    case: str
    run: Callable[[], list[mx.array]]
    dtype: mx.Dtype = mx.float32


@dataclass(frozen=True)
class Finding:
    """What came of a check: the error if it ran, the reason if it did not."""

    check: Check
    error: float | None = None
    reason: str = ""
    kernel_seconds: float | None = None
    twin_seconds: float | None = None

    @property
    def allowed(self) -> float:
        return _TOLERANCE[self.check.dtype]

    @property
    def passed(self) -> bool:
        return self.error is not None and self.error <= self.allowed

    def cells(self) -> list[str]:
        """Its row of the table."""
        times = [_microseconds(t) for t in (self.kernel_seconds, self.twin_seconds)]
        error = "-" if self.error is None else f"{self.error:.1e}"
        verdict = "ok" if self.passed else self.reason or "WRONG"
        return [self.check.file, self.check.case, error, f"{self.allowed:.1e}", *times, verdict]


def checks() -> Iterator[Check]:
    """Every kernel, on the shapes of small and large models."""
    for tokens, m, k, dtype in [(1, 64, 8, mx.bfloat16), (3, 4096, 8, mx.float32)]:
        yield _route(tokens, m, k, dtype)
    for batch, m, k, d, dtype in [(1, 64, 8, 2048, mx.bfloat16), (3, 300, 70, 200, mx.float32)]:
        yield _sparse_update(batch, m, k, d, dtype, masked=False)
    yield _sparse_update(3, 64, 8, 256, mx.float16, masked=True)
    for tokens, hidden, dtype in [(1, 2048, mx.bfloat16), (3, 250, mx.float32)]:
        yield _add_rms_norm(tokens, hidden, dtype)
    for shape in [(1, 16, 64, 32), (2, 5, 33, 50)]:
        yield _state_pass(*shape)
    for shape in [(1, 4, 64, 256, 8), (2, 2, 70, 50, 70)]:
        yield _chunk_scan(*shape)
        yield _chunk_scan_vjp(*shape)


def _route(tokens: int, m: int, k: int, dtype: mx.Dtype) -> Check:
    mx.random.seed(0)
    routing = (3 * mx.random.normal((tokens, m + 2))).astype(dtype)
    mx.eval(routing)

    def run():
        return [*ops.route(routing, k, 0.5), *ops.route_dense(routing, k, 0.5)]

    return Check("route", f"{tokens} x {m}, k {k}, {_name(dtype)}", run)


def _sparse_update(batch: int, m: int, k: int, d: int, dtype: mx.Dtype, masked: bool) -> Check:
    mx.random.seed(0)
    chosen = mx.argsort(mx.random.uniform(shape=(batch, m)), axis=-1)[:, :k]
    indices = mx.sort(chosen, axis=-1).astype(mx.int32)[:, None]
    theta, phi = mx.random.uniform(shape=(2, batch, 1, k))
    value = mx.random.normal((batch, 1, d)).astype(dtype)
    state = mx.random.normal((batch, m, d))
    mask = mx.arange(batch)[:, None] > 0 if masked else None
    mx.eval(indices, theta, phi, value, state, mask)

    def run():
        return list(ops.sparse_update(indices, theta, phi, value, state, mask, eps=_EPS))

    case = f"{batch} x {m} x {d}, k {k}, {_name(dtype)}" + (", masked" if masked else "")
    return Check("sparse_update", case, run, dtype)


def _add_rms_norm(tokens: int, hidden: int, dtype: mx.Dtype) -> Check:
    mx.random.seed(0)
    x, update = mx.random.normal((2, tokens, hidden)).astype(dtype)
    weight = mx.random.uniform(shape=(hidden,))
    mx.eval(x, update, weight)
    case = f"{tokens} x {hidden}, {_name(dtype)}"
    return Check(
        "add_rms_norm", case, lambda: list(ops.add_rms_norm(x, update, weight, _EPS)), dtype
    )


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

    return Check("state_pass", f"{batch} x {chunks} x {m} x {d}, both ways", run)


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
    return Check("chunk_scan", case, lambda: list(chunk_map(*inputs, d, _EPS)))


def _chunk_scan_vjp(batch: int, chunks: int, m: int, d: int, k: int) -> Check:
    inputs, case = _chunks(batch, chunks, m, d, k)
    cotangents = [mx.random.normal(inputs[0].shape), mx.random.normal(inputs[2].shape)]
    mx.eval(cotangents)

    def run():
        return list(mx.vjp(lambda *x: chunk_map(*x, d, _EPS), inputs, cotangents)[1])

    return Check("chunk_scan_vjp", case, run)


def examine(check: Check, backend: Backend, *, timed: bool) -> Finding:
    """Run a kernel and its twin on the same input."""
    with launch.using(Backend.OPS):
        wanted = check.run()
        mx.eval(wanted)
    before = _launches(check.file)
    try:
        with launch.using(backend):
            got = check.run()
            mx.eval(got)
    except Exception as error:  # whatever a compiler or a driver raises is what is asked for
        lines = [line for line in str(error).splitlines() if line.strip()]
        return Finding(check, reason=f"FAILED: {type(error).__name__}: {' '.join(lines[:1])}"[:160])
    if _launches(check.file) == before:
        return Finding(check, reason="FAILED: it was not launched")
    error = max(_difference(a, b) for a, b in zip(got, wanted, strict=True))
    if not timed:
        return Finding(check, error)
    return Finding(check, error, "", *_times(check, backend))


def _launches(file: str) -> int:
    return sum(kernel.launches for kernel in kernels.ALL.values() if kernel.file == file)


def _difference(got: mx.array, wanted: mx.array) -> float:
    """Relative to the largest number wanted; infinite where integers or NaNs differ."""
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return float("inf")
    if mx.issubdtype(wanted.dtype, mx.integer):
        return 0.0 if mx.array_equal(got, wanted).item() else float("inf")
    got, wanted = got.astype(mx.float32), wanted.astype(mx.float32)
    error = (mx.abs(got - wanted).max() / mx.maximum(mx.abs(wanted).max(), 1e-3)).item()
    return error if error == error else float("inf")


def _times(check: Check, backend: Backend) -> tuple[float, float]:
    """Median seconds of the kernel and of the twin, in turns."""
    seconds = {backend: [], Backend.OPS: []}
    for _ in range(_TIMED_ROUNDS):
        for chosen, taken in seconds.items():
            with launch.using(chosen):
                together = seconds_of(lambda: mx.eval([check.run() for _ in range(_TOGETHER)]))
            taken.append(together / _TOGETHER)
    kernel, twin = (statistics.median(taken) for taken in seconds.values())
    return kernel, twin


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``fm-mlx doctor``."""
    parser.add_argument(
        "--simulator",
        action="store_true",
        help="run the kernels in the simulator, on any machine (checks results, not times)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 if a kernel is wrong."""
    print(f"fm-mlx {fm_mlx.__version__} on {device_line()}\n")
    with launch.using(Backend.SIMULATOR) if args.simulator else nullcontext():
        backend = launch.backend()
    broken = [] if backend is Backend.OPS else _examine_all(backend)
    if backend is Backend.OPS:
        print("Kernels: not checked. MLX has no Metal GPU here, so their twins run in their place.")
        print("fm-mlx doctor --simulator executes them on this machine.")
    print()
    _report_update()
    return 1 if broken else 0


def _examine_all(backend: Backend) -> list[str]:
    """Print the table, switch off what is wrong; its names."""
    broken = set(sources())
    # should a kernel take the process down, it and those after it stay off
    verdicts.record(backend, broken)
    findings: list[Finding] = []
    with verdicts.disregarded():
        for check in checks():
            findings.append(examine(check, backend, timed=backend is Backend.METAL))
    broken = {finding.check.file for finding in findings if not finding.passed}
    verdicts.record(backend, broken)
    head = ["kernel", "case", "error", "allowed", "kernel us", "twin us", "verdict"]
    print("\n".join(aligned([head, *(finding.cells() for finding in findings)], left=2)))
    print(f"\nRun by {backend}. Errors are relative to the largest number of the twin's output.")
    if backend is Backend.SIMULATOR:
        print("The simulator executes the Metal source on the CPU: it says nothing about times.")
    if not broken:
        print("Every kernel agrees with its twin.")
    for name in sorted(broken):
        print(f"{name} is switched off on this machine: its ops form runs instead.")
    if broken:
        print(f"That is noted in {verdicts.path()}, until MLX, the device or the kernel changes.")
        print("Please report it, with all of the above.")
    return sorted(broken)


def _report_update() -> None:
    costs = update_cost(ROWS)
    rows = [["rows m", "step us", "update us a layer", f"to m = {ROWS[0]}"]]
    for m, cost in costs.items():
        ratio = cost.update / costs[ROWS[0]].update
        step, update = _microseconds(cost.step), _microseconds(cost.update)
        rows.append([f"{m:,}", step, update, f"{ratio:.2f}x"])
    print("A decoded token, 2 layers of hidden size 256, k = 8, float32:\n")
    print("\n".join(aligned(rows)))
    copied = 2 * max(ROWS) * 256 * 4 / 1e6
    print("\nThe update is the step less the same step without it. If the rows were not written")
    print(f"in place, {copied:.1f} MB more would move in each layer at m = {max(ROWS):,}.")


def _microseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e6:,.1f}"


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")
