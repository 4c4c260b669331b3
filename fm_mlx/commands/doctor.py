"""``fm-mlx doctor``: are the kernels right on this machine, and what do they gain?

A kernel that fails or differs from its reference op is switched off on this machine
(`fm_mlx.metal_kernels.verdicts`). The report is made to be pasted into an issue.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext

import mlx.core as mx

import fm_mlx
from fm_mlx.metal_kernels import launch, verdicts
from fm_mlx.metal_kernels.launch import Backend
from fm_mlx.model import ModelArgs
from fm_mlx.perf.bench import FM_CONFIG
from fm_mlx.perf.beside_bounds import measure as beside_bounds
from fm_mlx.perf.chips import Chip, find_chips
from fm_mlx.perf.doctor import Outcome, examine_all
from fm_mlx.perf.plan import Plan, seconds
from fm_mlx.perf.speeds import Speeds, measure_speeds
from fm_mlx.perf.timing import device_line
from fm_mlx.perf.update_cost import update_cost
from fm_mlx.support.arrays import dtype_name
from fm_mlx.support.tables import aligned

# The model that is timed beside its bounds, and the tokens of its prompt and training step.
_TOKENS = 512
_ON_THE_CPU = ModelArgs.from_dict(FM_CONFIG), mx.float32
_ON_A_GPU = ModelArgs(1024, 8, 3072, 8192, num_active_states=8), mx.bfloat16

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
    speeds = measure_speeds(1 << 26, mx.float32)
    if backend is Backend.OPS:
        print("Kernels: not checked. MLX has no Metal GPU here: their reference ops run instead.")
        print("fm-mlx doctor --simulator executes them on this machine.")
    else:
        broken = _examine_all(backend, speeds)
    print()
    _report_update()
    print()
    _report_model(speeds)
    return 1 if broken else 0


def _examine_all(backend: Backend, speeds: Speeds) -> list[str]:
    """Print the table, and switch off what is wrong; the names of those kernels.

    The verdicts change when all checks are done, and not before: who interrupts the doctor
    leaves them as they were.
    """
    outcomes = list(examine_all(backend))
    broken = sorted({outcome.file for outcome in outcomes if not outcome.passed})
    verdicts.record(backend, broken)
    times = ["least us", "kernel us", "reference us"]
    head = ["kernel", "case", "error", "allowed", *times, "verdict"]
    print("\n".join(aligned([head, *(_cells(o, speeds) for o in outcomes)], left=2)))
    print(
        f"\nRun by {backend}. Errors are relative to the reference op's largest number. Least: for"
    )
    print("what the kernel moves and computes, as fast as a copy and a product here.")
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


def _cells(outcome: Outcome, speeds: Speeds) -> list[str]:
    timed = outcome.kernel_seconds is not None
    least = speeds.bound(outcome.work) if timed else None
    taken = least, outcome.kernel_seconds, outcome.reference_seconds
    times = [_microseconds(t) for t in taken]
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


def _report_model(speeds: Speeds) -> None:
    """A model's speeds beside its bounds."""
    args, dtype = _ON_THE_CPU if launch.on_cpu() else _ON_A_GPU
    reached = beside_bounds(args, dtype, _TOKENS)
    chips = _chips()
    head = ["tokens/s", "reached", "at most here", "of that"]
    rows = [[*head, *(f"at most on {chip.name}" for chip in chips)]]
    for of_run in reached:
        most = of_run.tokens / speeds.bound(of_run.work)
        speed = of_run.tokens / of_run.seconds
        cells = [of_run.name, f"{speed:,.0f}", f"{most:,.0f}", f"{speed / most:.0%}"]
        for chip in chips:
            known = chip.teraflops or of_run.name == "decode"
            bound = of_run.tokens / seconds(of_run.work, chip)
            cells.append(f"{bound:,.0f}" if known else "-")
        rows.append(cells)
    print(
        f"A model of {Plan(args).parameters:,} parameters, {dtype_name(dtype)}, beside the bounds"
    )
    print(f"of fm-mlx plan; prompt and training step of {_TOKENS} tokens:\n")
    print("\n".join(aligned(rows)))
    copied, computed = speeds.bandwidth / 1e9, speeds.arithmetic / 1e9
    print(
        f"\nHere a copy reaches {copied:,.0f} GB/s and a product {computed:,.0f} GFLOP/s, float32."
    )


def _chips() -> tuple[Chip, ...]:
    """What `fm-mlx plan` knows of this machine's chip: one, its two widths of memory, or none."""
    try:
        return find_chips(str(mx.device_info().get("device_name")))
    except ValueError:
        return ()


def _microseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e6:,.1f}"
