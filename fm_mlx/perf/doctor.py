"""Are the kernels right on this machine, and what do they gain?

Every kernel is run beside its reference op, which is its specification. That happens in a
process of its own: a wrong kernel may take the process down that launches it.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any

import mlx.core as mx

from fm_mlx.metal_kernels import launch, verdicts
from fm_mlx.metal_kernels.catalogue import KERNELS
from fm_mlx.metal_kernels.cost import Cost
from fm_mlx.metal_kernels.launch import Backend
from fm_mlx.perf.kernel_checks import Check, checks
from fm_mlx.perf.timing import medians_in_turns, seconds_of
from fm_mlx.support.arrays import number

_TIMED_ROUNDS = 20
# Runs in one timed evaluation, so that handing it over to a GPU does not count.
_TOGETHER = 8

# The largest difference from the reference op, relative to its largest number: sums in
# another order, and in 16 bits one unit in the last place.
_TOLERANCE = {mx.float32: 1e-5, mx.float16: 2**-10, mx.bfloat16: 2**-7}

# How a process ends that a kernel has taken down. Other signals come from outside.
_CRASHES = {
    getattr(signal, name)
    for name in ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGTRAP")
    if hasattr(signal, name)
}


@dataclass(frozen=True)
class Outcome:
    """What came of a check.

    Attributes:
        file: The Metal file of the kernel.
        case: Shapes and dtype, for people.
        work: What the kernel moves and computes.
        allowed: The largest relative error that is right.
        error: The relative error that was found; None if the kernel did not run.
        reason: Why it did not run.
        kernel_seconds, reference_seconds: Median times; None if they were not taken.
    """

    file: str
    case: str
    work: Cost
    allowed: float
    error: float | None = None
    reason: str = ""
    kernel_seconds: float | None = None
    reference_seconds: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the kernel agrees with its reference op."""
        return self.error is not None and self.error <= self.allowed


def examine_all(backend: Backend) -> Iterator[Outcome]:
    """The outcomes of all checks, in order, each as soon as it is there.

    Raises:
        InterruptedError: if the process that runs the kernels was ended from outside.
    """
    every = list(checks())
    done = 0
    while done < len(every):
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=examine_from, args=(sender, backend, done), daemon=True)
        process.start()
        sender.close()
        try:
            while True:
                yield receiver.recv()
                done += 1
        except EOFError:  # it has ended, in one way or another
            process.join()
        finally:
            process.kill()
        status = process.exitcode or 0
        if status == 0:
            return
        if -status not in _CRASHES:
            raise InterruptedError(
                f"the process that checks the kernels was ended (exit status {status})"
            )
        name = signal.Signals(-status).name
        reason = f"FAILED: {name} ended the process that launched it"
        yield _outcome(every[done], reason=reason)
        done += 1


def examine_from(sender: Connection, backend: Backend, first: int) -> None:
    """Send the outcomes of all checks from number ``first`` on; runs in its own process."""
    # an interrupt reaches the whole group; who started this process ends it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with verdicts.disregarded():
        for check in islice(checks(), first, None):
            sender.send(examine(check, backend, timed=backend is Backend.METAL))


def examine(check: Check, backend: Backend, *, timed: bool) -> Outcome:
    """Run a kernel and its reference op on the same input."""
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
        reason = f"FAILED: {type(error).__name__}: {' '.join(lines[:1])}"[:160]
        return _outcome(check, reason=reason)
    if _launches(check.file) == before:
        return _outcome(check, reason="FAILED: it was not launched")
    error = max(_difference(a, b) for a, b in zip(got, wanted, strict=True))
    if not timed:
        return _outcome(check, error=error)
    kernel, reference = _times(check, backend)
    return _outcome(check, error=error, kernel_seconds=kernel, reference_seconds=reference)


def _outcome(check: Check, **found: Any) -> Outcome:
    return Outcome(check.file, check.case, check.work, _TOLERANCE[check.dtype], **found)


def _launches(file: str) -> int:
    return sum(kernel.launches for kernel in KERNELS.values() if kernel.file == file)


def _difference(got: mx.array, wanted: mx.array) -> float:
    """Relative to the largest number wanted; infinite where integers or NaNs differ."""
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return float("inf")
    if mx.issubdtype(wanted.dtype, mx.integer):
        return 0.0 if mx.array_equal(got, wanted).item() else float("inf")
    got, wanted = got.astype(mx.float32), wanted.astype(mx.float32)
    largest = mx.maximum(mx.abs(wanted).max(), 1e-3)
    error = number(mx.abs(got - wanted).max() / largest)
    return error if error == error else float("inf")


def _times(check: Check, backend: Backend) -> tuple[float, float]:
    """Median seconds of the kernel and of its reference op, in turns."""

    def run(chosen: Backend) -> float:
        with launch.using(chosen):
            together = seconds_of(lambda: mx.eval([check.run() for _ in range(_TOGETHER)]))
        return together / _TOGETHER

    arms = {chosen.value: lambda chosen=chosen: run(chosen) for chosen in (backend, Backend.OPS)}
    medians = medians_in_turns(arms, _TIMED_ROUNDS)
    return medians[backend.value], medians[Backend.OPS.value]
