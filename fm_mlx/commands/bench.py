"""``fm-mlx bench``: Factorization Memory beside mlx-lm's llama and mamba2 of equal size."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fm_mlx.perf import bench
from fm_mlx.perf.timing import device_line
from fm_mlx.support.files import check_folder_of, read_json_object, write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--contexts", type=int, nargs="+", default=[512, 2048, 8192], metavar="T",
        help="prompt lengths to read (default: 512 2048 8192)",
    )  # fmt: skip
    parser.add_argument(
        "--train-lengths", type=int, nargs="*", default=[256, 1024], metavar="T",
        help="lengths of the training windows (default: 256 1024)",
    )  # fmt: skip
    parser.add_argument(
        "--lora-lengths", type=int, nargs="*", default=[256, 1024], metavar="T",
        help="lengths of the windows of LoRA steps (default: 256 1024)",
    )  # fmt: skip
    parser.add_argument(
        "--llama-heads", type=int, choices=(2, 4, 8, 16), default=8,
        help="attention heads of the llama; fewer are faster (default: 8, of 32 columns)",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=int, default=3, help="times that every arm runs, in turns (default: 3)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE",
        help="add the figures of this run to those of earlier runs in FILE",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Measure and print a table in Markdown."""
    lengths = [*args.contexts, *args.train_lengths, *args.lora_lengths]
    if args.rounds < 1 or min(lengths, default=1) < 1:
        raise ValueError(
            "--rounds, --contexts, --train-lengths and --lora-lengths take numbers from 1"
        )
    runs = _earlier_runs(args.json) if args.json else []
    began = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    arms = bench.build_arms(args.llama_heads)
    names = [arm.name for arm in arms]
    header = ["", *names, *(f"fm : {name}" for name in names[1:])]
    total = 2 * len(args.contexts) + len(args.train_lengths) + len(args.lora_lengths) + 2
    sizes = ", ".join(f"{arm.name} {arm.parameters:,}" for arm in arms)
    progress = tqdm(total=total, disable=not sys.stderr.isatty(), unit="figure")
    rows: list[list[str]] = []

    def row(label: str, values: dict[str, float], fm_over: bool, form: str = "{:,.0f}") -> None:
        """``fm_over``: the ratio is FM / other; else other / FM."""
        fm = values["fm"]
        ratios = [fm / values[n] if fm_over else values[n] / fm for n in names[1:]]
        figures = [form.format(values[n]) for n in names]
        rows.append([label, *figures, *(f"{ratio:.2f}x" for ratio in ratios)])

    def peak_row(label: str, measured: dict[str, bench.Timed]) -> None:
        row(f"{label}, peak MB", {n: t.peak / 1e6 for n, t in measured.items()}, fm_over=True)

    for context in args.contexts:
        bench.bench_prefill(arms, min(context, bench.PREFILL_STEP), 1)  # compiles
        measured = bench.bench_prefill(arms, context, args.rounds)
        speed = {name: context / timed.seconds for name, timed in measured.items()}
        row(f"prefill {context}, tokens/s", speed, fm_over=True)
        peak_row(f"prefill {context}", measured)
        progress.update()
        measured = bench.bench_decode(arms, context, args.rounds)
        speed = {name: timed.seconds * 1e3 for name, timed in measured.items()}
        row(f"decode after {context}, ms/token", speed, fm_over=False, form="{:.2f}")
        peak_row(f"decode after {context}", measured)
        progress.update()

    def training_rows(kind: str, length: int) -> None:
        measured = bench.bench_training(arms, length, args.rounds)
        tokens = bench.TRAINING_BATCH * length
        speed = {name: tokens / timed.seconds for name, timed in measured.items()}
        row(f"{kind} T={length}, tokens/s", speed, fm_over=True)
        peak_row(f"{kind} T={length}", measured)
        progress.update()

    for length in args.train_lengths:
        training_rows("training", length)
    bench.with_lora(arms)
    for length in args.lora_lengths:
        training_rows("LoRA", length)
    overheads: dict[str, float] = {}
    for config in (bench.FM_CONFIG, bench.WIDE_CONFIG):
        measured = bench.bench_overhead(config, 4 * args.rounds)
        ratio = measured["blocks"].seconds / measured["products"].seconds
        overheads[f"hidden {config['hidden_size']}"] = round(ratio, 2)
        progress.update()
    progress.close()

    print(f"{device_line()}; float32")
    print(f"parameters: {sizes}; hidden 256, vocabulary {bench.VOCAB_SIZE};")
    print(f"{args.llama_heads} attention heads; batch 1 ({bench.TRAINING_BATCH} in training);")
    print(f"prompts read in pieces of {bench.PREFILL_STEP}; medians of {args.rounds} rounds.")
    print("For speeds and times a ratio above 1 is in favour of fm; for memory, one below 1.\n")
    for cells in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(cells) + " |")
    beside = ", ".join(f"{size}: {ratio:.2f}x" for size, ratio in overheads.items())
    print(f"\nFM's blocks against their own matrix products alone: {beside}")
    if args.json:
        this = {
            "began": began,
            "machine": device_line(),
            "rounds": args.rounds,
            "llama heads": args.llama_heads,
            "figures": {
                label: dict(zip(header[1:], map(_number, cells), strict=True))
                for label, *cells in rows
            },
            "blocks beside their products": overheads,
        }
        write_json(args.json, {"runs": [*runs, this]})
    return 0


def _number(cell: str) -> float:
    """What a cell of the table says: ``1,024`` or ``1.50x``."""
    return float(cell.strip("x").replace(",", ""))


def _earlier_runs(path: Path) -> list[dict[str, Any]]:
    """The runs in a file that ``--json`` names; none if there is no such file."""
    check_folder_of(path)
    if not path.exists():
        return []
    runs = read_json_object(path).get("runs")
    if not isinstance(runs, list):
        raise ValueError(
            f"{path} holds no list of runs: name a file that --json wrote, or a new one"
        )
    return runs
