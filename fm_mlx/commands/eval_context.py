"""``fm-mlx eval context``: the loss of a text, read with more and less context."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fm_mlx.commands.arguments import whole
from fm_mlx.commands.eval_options import add_models, add_output, check_output

DESCRIPTION = (
    "Read the same tokens of a text in windows of several lengths, each from an empty memory, and "
    "compare the losses: a model that makes use of more context predicts them better. Within the "
    "longest windows the loss is also given by position."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_models(parser)
    parser.add_argument("--text", required=True, metavar="FILE", help="UTF-8 text to predict")
    parser.add_argument(
        "--contexts",
        type=whole(1),
        nargs="+",
        metavar="T",
        help="tokens of a window, each a divisor of the longest (default: 256 1024 4096 16384, as "
        "far as the text reaches)",
    )
    parser.add_argument(
        "--max-tokens",
        "-m",
        type=whole(1),
        default=65_536,
        help="tokens of the text to predict at most (default: 65536)",
    )
    add_output(parser, "the losses by context and by position")


def run(args: argparse.Namespace) -> int:
    """Measure, print a table, and write what is asked for."""
    from tqdm import tqdm

    from fm_mlx.evaluation import context, pictures
    from fm_mlx.evaluation.models import load_any, names_of
    from fm_mlx.evaluation.texts import read_tokens
    from fm_mlx.support.files import write_csv
    from fm_mlx.text import special_tokens

    check_output(args)
    path = Path(args.text)
    found = []
    for name, model_path in zip(names_of(args.model), args.model, strict=True):
        model, tokenizer = load_any(model_path)
        text = read_tokens(tokenizer, path, args.max_tokens + 1)
        contexts = context.contexts_that_fit(len(text.ids) - 1, args.contexts)
        predicted = (len(text.ids) - 1) // contexts[-1] * contexts[-1]
        with tqdm(
            desc=name,
            total=len(contexts) * predicted,
            unit=" tokens",
            unit_scale=True,
            delay=2,
            leave=False,
            disable=not sys.stderr.isatty(),
        ) as bar:
            readings = context.measure(
                model, *text, contexts, special_tokens(tokenizer)[0], bar.update
            )
        found.append(context.Measured(name, readings))
    print("\n".join(_table(found, path.name)))
    if args.csv is not None:
        rows = (row for measured in found for row in measured.rows())
        write_csv(Path(args.csv), context.HEADER, rows)
    if args.plot is not None:
        pictures.draw_contexts(found, Path(args.plot))
    return 0


def _table(found: list, text: str) -> list[str]:
    """Lines for the terminal: a model's contexts, all of the same tokens."""
    from fm_mlx.support.tables import aligned

    rows = [["model", "context", "windows", "nats/token", "bits/byte"]]
    lines = []
    for measured in found:
        last = measured.readings[-1]
        tokens = last.windows * last.context
        lines.append(
            f"{measured.name}: {tokens:,} tokens of {text}, {last.bytes_per_token:.2f} bytes each"
        )
        for reading in measured.readings:
            cells = f"{reading.context:,}", f"{reading.windows:,}"
            losses = f"{reading.nats():.4f}", f"{reading.bits_per_byte():.4f}"
            rows.append([measured.name, *cells, *losses])
    return [*lines, "", *aligned(rows)]
