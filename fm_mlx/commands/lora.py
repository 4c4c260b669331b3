"""``fm-mlx lora``: tune a model on your own text."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import fields
from pathlib import Path

import mlx.core as mx

from fm_mlx.commands.arguments import number, whole
from fm_mlx.lora import curves
from fm_mlx.lora.loop import Diverged
from fm_mlx.lora.options import (
    BATCHING,
    FINE_TUNE_TYPES,
    LEARNING_RATES,
    OPTIMIZERS,
    Options,
    read_config,
)
from fm_mlx.lora.run import Result, evaluate, tune

# Options that are numbers, by group: the least allowed, what stands for the number, what it is.
_NUMBERS = {
    "what": [
        ("num_layers", -1, "N", "last layers to tune; -1: all"),
    ],
    "rows": [
        ("batch_size", 1, "B", "rows of a step"),
        ("max_seq_length", 1, "T", "most tokens of a row"),
    ],
    "steps": [
        ("iters", 1, "N", "steps"),
        ("grad_accumulation_steps", 1, "N", "steps whose gradients make an update"),
        ("clear_cache_threshold", 0, "BYTES", "freed memory that MLX may keep"),
        ("seed", 0, "N", "of weights, dropout and order"),
    ],
    "files and reports": [
        ("save_every", 1, "N", "steps between saves"),
        ("steps_per_report", 1, "N", "steps between reports"),
        ("steps_per_eval", 1, "N", "steps between evaluations"),
        ("val_batches", -1, "N", "batches of an evaluation; -1: all"),
        ("test_batches", -1, "N", "batches of the test; -1: all"),
    ],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, by mlx-lm's names where it has them; absent ones come from the config."""
    groups = {title: parser.add_argument_group(title) for title in _NUMBERS}
    what, rows, steps, files = groups.values()
    what.add_argument("--model", help="folder or Hugging Face repository (the packaged model)")
    what.add_argument(
        "--data",
        help="folder with train.jsonl, valid.jsonl and test.jsonl; a text file, of which the last "
        "tenth is held out; or a Hugging Face data set",
    )
    what.add_argument(
        "--fine-tune-type", choices=FINE_TUNE_TYPES,
        help="memory: only what the memories hold before the first token (lora)",
    )  # fmt: skip
    what.add_argument(
        "--memory-layers", type=whole(0), nargs="+", metavar="I",
        help="with memory: the layers, from 0, instead of the last ones",
    )  # fmt: skip
    what.add_argument("--train-router", action="store_true", help="tune the routers too")
    what.add_argument("--train", action="store_true", help="tune; the default without --test")
    what.add_argument("--test", action="store_true", help="say the loss on the test examples")
    what.add_argument(
        "-c", "--config", type=Path, metavar="FILE",
        help="YAML with these options and mlx-lm's lora_parameters, lr_schedule, optimizer_config",
    )  # fmt: skip
    rows.add_argument(
        "--batching", choices=BATCHING,
        help="bucket: like lengths side by side (default); pack: several examples in a row, memory "
        "reset between them; stream: long texts in pieces, memory carried (default of a text file)",
    )  # fmt: skip
    rows.add_argument("--mask-prompt", action="store_true", help="learn completions only")
    rates = ", ".join(f"{kind} {rate:g}" for kind, rate in LEARNING_RATES.items())
    steps.add_argument("--learning-rate", type=number(0), metavar="X", help=f"({rates})")
    steps.add_argument("--optimizer", choices=OPTIMIZERS, help="of MLX (adam)")
    steps.add_argument("--grad-checkpoint", action="store_true", help="less memory, more time")
    files.add_argument("--adapter-path", metavar="DIR", help="to write, or to test (adapters)")
    files.add_argument("--resume", action="store_true", help="go on from the last save")
    files.add_argument(
        "--resume-adapter-file", metavar="FILE", help="begin with the weights of an adapter"
    )
    files.add_argument("--report-to", metavar="NAME", help="wandb, swanlab, or both with a comma")
    files.add_argument("--project-name", metavar="NAME", help="for --report-to")
    files.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code a checkpoint brings"
    )
    defaults = {option.name: option.default for option in fields(Options)}
    for title, group in groups.items():
        for name, least, metavar, purpose in _NUMBERS[title]:
            group.add_argument(
                f"--{name.replace('_', '-')}", type=whole(least), metavar=metavar,
                help=f"{purpose} ({defaults[name]})",
            )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Tune, test or both; 1 if the weights became infinite."""
    chosen = {} if args.config is None else read_config(args.config)
    # a flag that is not given is as absent as an option that is not
    given = {k: v for k, v in vars(args).items() if v is not None and v is not False}
    chosen |= {k: v for k, v in given.items() if k not in ("config", "run")}
    tests = chosen.pop("test", False)
    tunes = chosen.pop("train", False) or not tests
    options = Options(**chosen)
    quiet = mx.distributed.init().rank() > 0
    if tunes:
        try:
            result = tune(options)
        except Diverged as error:
            if not quiet:
                print("fm-mlx lora:", error, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            if not quiet:
                print("fm-mlx lora: stopped; --resume goes on from the last save", file=sys.stderr)
            raise
        if not quiet:
            _report(result)
    if tests:
        loss = evaluate(options)
        if not quiet:
            print(f"Test loss {loss:.3f} nats/token, perplexity {math.exp(loss):.3f}")
    return 0


def _report(result: Result) -> None:
    share = result.tuned / result.parameters
    print(f"{result.adapter_path}: {result.tuned:,} numbers tuned, {share:.1%} of the model's")
    if result.before is not None:
        print(f"held-out loss: {result.before:.3f} nats/token before, {result.after:.3f} after")
    if curves.draw(result.adapter_path):
        print(f"losses: {result.adapter_path / curves.PICTURE}, {result.adapter_path / curves.LOG}")
    else:
        print(f"losses: {result.adapter_path / curves.LOG} (a picture needs matplotlib)")
