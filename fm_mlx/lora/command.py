"""``fm-mlx lora``: tune a model on your own text."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import mlx.core as mx

from fm_mlx.cli_types import number, whole
from fm_mlx.lora import curves
from fm_mlx.lora.options import BATCHING, FINE_TUNE_TYPES, OPTIMIZERS, Options, read_config
from fm_mlx.lora.run import Diverged, Result, evaluate, tune


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, by mlx-lm's names where it has them; absent ones come from the config."""
    what = parser.add_argument_group("what")
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
    what.add_argument("--num-layers", type=whole(-1), help="last layers to tune; -1: all (-1)")
    what.add_argument("--memory-layers", type=whole(0), nargs="+", metavar="I", help="with memory")
    what.add_argument("--train-router", action="store_true", help="tune the routers too")
    what.add_argument("--train", action="store_true", help="tune; the default without --test")
    what.add_argument("--test", action="store_true", help="say the loss on the test examples")
    what.add_argument("-c", "--config", type=Path, metavar="FILE", help="YAML with these options")
    rows = parser.add_argument_group("rows")
    rows.add_argument(
        "--batching", choices=BATCHING,
        help="bucket: like lengths side by side (default); pack: several examples in a row, memory "
        "reset between them; stream: long texts in pieces, memory carried (default of a text file)",
    )  # fmt: skip
    rows.add_argument("--batch-size", type=whole(1), help="rows of a step (4)")
    rows.add_argument("--max-seq-length", type=whole(1), help="most tokens of a row (2048)")
    rows.add_argument("--mask-prompt", action="store_true", help="learn completions only")
    steps = parser.add_argument_group("steps")
    steps.add_argument("--iters", type=whole(1), help="steps (1000)")
    steps.add_argument("--learning-rate", type=number(0), help="(by the type)")
    steps.add_argument("--optimizer", choices=OPTIMIZERS, help="(adam)")
    steps.add_argument("--grad-accumulation-steps", type=whole(1), help="steps of an update (1)")
    steps.add_argument("--grad-checkpoint", action="store_true", help="less memory, more time")
    steps.add_argument("--clear-cache-threshold", type=whole(0), help="bytes MLX may keep (0)")
    steps.add_argument("--seed", type=whole(0), help="of weights, dropout and order (0)")
    files = parser.add_argument_group("files and reports")
    files.add_argument("--adapter-path", help="folder to write, or to test (adapters)")
    files.add_argument("--save-every", type=whole(1), help="steps between saves (100)")
    files.add_argument("--resume", action="store_true", help="go on from the last save")
    files.add_argument("--resume-adapter-file", help="begin with the weights of an adapter")
    files.add_argument("--val-batches", type=whole(-1), help="of an evaluation; -1: all (25)")
    files.add_argument("--test-batches", type=whole(-1), help="of the test; -1: all (500)")
    files.add_argument("--steps-per-report", type=whole(1), help="(10)")
    files.add_argument("--steps-per-eval", type=whole(1), help="(200)")
    files.add_argument("--report-to", help="wandb, swanlab, or both with a comma")
    files.add_argument("--project-name", help="for --report-to")
    files.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code a checkpoint brings"
    )


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
