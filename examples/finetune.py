"""Tune the packaged model, which knows old literature, on the documentation of Python's language.

    python examples/finetune.py

tunes in every way that ``fm-mlx lora`` has, on the same windows of the same text, and prints a
table in Markdown: numbers tuned, speed, memory, held-out loss before and after. The text is the one
behind ``help()`` of every Python: the base was not trained on it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

from mlx_lm.convert import convert

from fm_mlx.loading import PRETRAINED
from fm_mlx.lora import Options, curves, tune
from fm_mlx.support.allocator import keep_freed_memory

KINDS = {
    "LoRA": dict(),
    "DoRA": dict(fine_tune_type="dora"),
    "full": dict(fine_tune_type="full"),
    "QLoRA, 4 bits": dict(quantised=True),
    "memory": dict(fine_tune_type="memory"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iters", type=int, default=300, help="steps of 4 windows (300)")
    parser.add_argument("--window", type=int, default=256, help="tokens of a window (256)")
    parser.add_argument("--kind", choices=KINDS, help="one way, in this process (default: all)")
    parser.add_argument("--work", type=Path, help="folder for text, models and adapters")
    args = parser.parse_args()
    if args.kind:
        print(row(args.kind, args.work, args.iters, args.window))
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        text = "\n\n".join(topics[name] for name in sorted(topics))
        (work / "documentation.txt").write_text(text)
        if not (work / "base 4").exists():
            convert(str(PRETRAINED), str(work / "base 4"), quantize=True, q_bits=4)
        header = ["", "numbers tuned", "tokens/s", "peak MB", "loss before", "loss after"]
        table = [" | ".join(header), " | ".join(["---"] * len(header))]
        for kind in KINDS:  # each in a process of its own, whose peak is its own
            argv = [__file__, "--kind", kind, "--work", work, "--iters", args.iters]
            argv = [sys.executable, *map(str, [*argv, "--window", args.window])]
            done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
            table.append(done.stdout.splitlines()[-1])
    print("\n".join(f"| {line} |" for line in table))


def row(kind: str, work: Path, iters: int, window: int) -> str:
    keep_freed_memory()
    changes = dict(KINDS[kind])
    base = work / "base 4" if changes.pop("quantised", False) else PRETRAINED
    options = Options(
        model=str(base), data=str(work / "documentation.txt"), batching="bucket",
        adapter_path=str(work / f"{kind} of {iters}"), max_seq_length=window, batch_size=4,
        iters=iters, val_batches=-1, steps_per_eval=iters, **changes,
    )  # fmt: skip
    result = tune(options)
    reports = [line for line in curves.read_log(result.adapter_path) if "train_loss" in line]
    speeds = sorted(line["tokens_per_second"] for line in reports)
    figures = [
        f"{result.tuned:,}",
        f"{speeds[len(speeds) // 2]:,.0f}",
        f"{reports[-1]['peak_memory'] * 1e3:,.0f}",
        f"{result.before:.3f}",
        f"{result.after:.3f}",
    ]
    return " | ".join([kind, *figures])


if __name__ == "__main__":
    main()
