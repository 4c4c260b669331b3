"""``fm-mlx eval``: what a model makes of long contexts, and what it recalls."""

from __future__ import annotations

import argparse

from fm_mlx.commands import eval_context, eval_needle, eval_recall

TASKS = {
    "context": (eval_context, "the loss of a text, read with more and less context"),
    "needle": (eval_needle, "what is left of a fact that stands far back in a text"),
    "recall": (eval_recall, "how many pairs small models learn to recall"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    tasks = parser.add_subparsers(metavar="task", required=True)
    for name, (module, purpose) in TASKS.items():
        task = tasks.add_parser(name, help=purpose, description=module.DESCRIPTION)
        module.add_arguments(task)
        task.set_defaults(task=module.run)


def run(args: argparse.Namespace) -> int:
    return args.task(args)
