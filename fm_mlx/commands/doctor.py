"""``fm-mlx doctor``: are the kernels right on this machine, and what do they gain?

A kernel that fails or differs from its reference op is switched off on this machine
(`fm_mlx.metal_kernels.verdicts`). The report is made to be pasted into an issue.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext

import fm_mlx
from fm_mlx.metal_kernels import launch, verdicts
from fm_mlx.metal_kernels.launch import Backend
from fm_mlx.perf.doctor import Outcome, examine_all
from fm_mlx.perf.timing import device_line
from fm_mlx.perf.update_cost import update_cost
from fm_mlx.support.tables import aligned

# A memory that stays dense, the least that is kept in two buffers, and a large one.
ROWS = (64, 192, 4096)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fm-mlx doctor``."""
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
    broken = []
    if backend is Backend.OPS:
        print("Kernels: not checked. MLX has no Metal GPU here: their reference ops run instead.")
        print("fm-mlx doctor --simulator executes them on this machine.")
    else:
        broken = _examine_all(backend)
    print()
    _report_update()
    return 1 if broken else 0


def _examine_all(backend: Backend) -> list[str]:
    """Print the table, and switch off what is wrong; the names of those kernels.

    The verdicts change when all checks are done, and not before: who interrupts the doctor
    leaves them as they were.
    """
    outcomes = list(examine_all(backend))
    broken = sorted({outcome.file for outcome in outcomes if not outcome.passed})
    verdicts.record(backend, broken)
    head = ["kernel", "case", "error", "allowed", "kernel us", "reference us", "verdict"]
    print("\n".join(aligned([head, *map(_cells, outcomes)], left=2)))
    print(f"\nRun by {backend}. Errors are relative to the reference op's largest number.")
    if backend is Backend.SIMULATOR:
        print("The simulator executes the Metal source on the CPU: it says nothing about times.")
    if not broken:
        print("Every kernel agrees with its reference op.")
    for name in broken:
        print(f"{name} is switched off on this machine: its reference op runs instead.")
    if broken:
        print(f"That is noted in {verdicts.path()}, until MLX, the device or the kernel changes.")
        print("Please report it, with all of the above.")
    return broken


def _cells(outcome: Outcome) -> list[str]:
    times = [_microseconds(t) for t in (outcome.kernel_seconds, outcome.reference_seconds)]
    error = "-" if outcome.error is None else f"{outcome.error:.1e}"
    verdict = "ok" if outcome.passed else outcome.reason or "WRONG"
    return [outcome.file, outcome.case, error, f"{outcome.allowed:.1e}", *times, verdict]


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
