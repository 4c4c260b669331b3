"""The command ``fm-mlx``: its subcommands, and how they end.

Every kind of bad input ends in one line on standard error and status 2.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NoReturn

import fm_mlx
from fm_mlx.support.allocator import keep_freed_memory
from fm_mlx.support.imports import without_pytorch

# Ours, by what they do; `fm_mlx.commands.<name>` has `add_arguments(parser)` and
# `run(args) -> int`.
COMMANDS = {
    "generate": "go on writing from a prompt of any length",
    "memory": "read texts into memories that are kept, and rewind them",
    "server": "serve a model and its memories over HTTP",
    "inspect": "show what a model does with a prompt, row by row, as a page and pictures",
    "eval": "measure what a model makes of long contexts, and what it recalls",
    "lora": "tune a model on your own text",
    "fuse": "put an adapter into its model's weights",
    "convert": "turn PyTorch weights into a model for MLX, and compare",
    "export": "turn a model into weights for PyTorch",
    "plan": "say what a model needs and how fast Apple's chips could be",
    "doctor": "check the Metal kernels on this machine, and time them",
    "profile": "say where the time of a model goes, part by part",
    "bench": "time the model beside a llama and a mamba2 of its size",
}

# mlx-lm's, with its options.
MLX_LM_COMMANDS = {
    "chat": "talk to a model (mlx_lm.chat)",
    "benchmark": "time a model (mlx_lm.benchmark)",
    "perplexity": "perplexity on a data set (mlx_lm.perplexity)",
    "evaluate": "run the tasks of lm-evaluation-harness (mlx_lm.evaluate)",
}


# Ours that compute with PyTorch, which they import themselves.
_WITH_PYTORCH = {"convert", "export"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``fm-mlx`` with the given arguments (None: the command line's); its exit status."""
    keep_freed_memory()
    try:
        status = _run(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # nobody reads the output any more; at exit Python would fail to flush it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError) as error:
        return _end(error, 2)
    except ArithmeticError as error:  # a model or a run that computed NaN
        return _end(error, 1)
    return status


def _end(error: Exception, status: int) -> int:
    print("fm-mlx: error:", " ".join(str(error).split()), file=sys.stderr)
    return status


def _run(argv: list[str]) -> int:
    name = argv[0] if argv else None
    if name in MLX_LM_COMMANDS:
        return _hand_over(name, argv[1:])
    with without_pytorch():
        args = _parse(name, argv)
    with nullcontext() if name in _WITH_PYTORCH else without_pytorch():
        return args.run(args)


def _parse(name: str | None, argv: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="fm-mlx", description="Factorization Memory language models on MLX.")
    parser.add_argument("--version", action="version", version=f"fm-mlx {fm_mlx.__version__}")
    subparsers = parser.add_subparsers(metavar="command", required=True)
    for command, purpose in COMMANDS.items():
        subparser = subparsers.add_parser(command, help=purpose, description=purpose + ".")
        if command == name:  # others stay unimported
            module = importlib.import_module(f"fm_mlx.commands.{command}")
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    for command, purpose in MLX_LM_COMMANDS.items():
        subparsers.add_parser(command, help=purpose)
    return parser.parse_args(argv)


def _hand_over(name: str, rest: list[str]) -> int:
    """Run a command of mlx-lm, on the packaged model unless another is named."""
    from mlx_lm import cli

    from fm_mlx.loading import PRETRAINED
    from fm_mlx.registry import watched

    before = sys.argv
    # of two --model options the last one counts
    sys.argv = [f"fm-mlx {name}", name, "--model", str(PRETRAINED), *rest]
    try:
        with watched():
            cli.main()
    except ModuleNotFoundError as error:
        raise ValueError(f"{name} needs the package {error.name}, not installed here") from error
    finally:
        sys.argv = before
    return 0
