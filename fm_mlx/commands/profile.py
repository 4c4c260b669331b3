"""``fm-mlx profile``: where the time of a model goes, part by part, on this device."""

from __future__ import annotations

import argparse
import sys

from tqdm import tqdm

from fm_mlx.commands.arguments import whole
from fm_mlx.loading import load
from fm_mlx.metal_kernels.cost import Cost
from fm_mlx.model import Model
from fm_mlx.perf.profile import (
    activation_dtype,
    parts,
    profile,
)
from fm_mlx.perf.speeds import Speeds, measure_speeds
from fm_mlx.perf.timing import device_line
from fm_mlx.support.arrays import nbytes
from fm_mlx.support.tables import aligned


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``fm-mlx profile``."""
    parser.add_argument(
        "--model", help="a model folder or Hugging Face repository; default: the packaged model"
    )
    parser.add_argument(
        "--prompt-tokens", type=whole(2), default=512, help="tokens of prefill (default 512)"
    )
    parser.add_argument(
        "--rounds", type=whole(1), default=20, help="times that every part runs (default 20)"
    )


def run(args: argparse.Namespace) -> int:
    """Print a table for prefill and one for decode."""
    model, _ = load(args.model)
    size = nbytes(model.parameters())
    progress = tqdm(total=3, disable=not sys.stderr.isatty(), unit="table")
    speeds = measure_speeds(min(max(size, 1 << 20), 1 << 28), activation_dtype(model))
    progress.update()
    tables = []
    for tokens in (args.prompt_tokens, 1):
        tables.append(_table(model, tokens, args.rounds, speeds))
        progress.update()
    progress.close()
    print(
        f"{device_line()}; {activation_dtype(model)}, {size / 1e6:,.1f} MB of weights".replace(
            "mlx.core.", ""
        )
    )
    print(
        f"bounds: {speeds.bandwidth / 1e9:,.1f} GB/s (a copy of as many bytes) and "
        f"{speeds.arithmetic / 1e9:,.0f} GFLOP/s (a matrix product), measured here"
    )
    for title, lines in zip(
        (f"prefill, {args.prompt_tokens} tokens", "decode"), tables, strict=True
    ):
        print(f"\n{title}, us a token\n" + "\n".join(lines))
    return 0


def _table(model: Model, tokens: int, rounds: int, speeds: Speeds) -> list[str]:
    seconds, whole_step = profile(model, tokens, rounds)
    rows = [["part", "time", "share", "bytes", "bound"]]

    def row(name: str, taken: float, work: Cost | None) -> None:
        costs = ["", ""]
        if work is not None:
            bound = speeds.bound(work) / tokens * 1e6
            costs = [f"{work.least_bytes / tokens:,.0f}", f"{bound:,.1f}"]
        share = f"{taken / whole_step:.0%}"
        rows.append([name, f"{taken / tokens * 1e6:,.1f}", share, *costs])

    for part in parts(model, tokens):
        row(part.name, seconds[part.name], part.work)
    row("between", whole_step - sum(seconds.values()), None)
    row("whole", whole_step, None)
    return aligned(rows)
