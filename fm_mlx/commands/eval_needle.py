"""``fm-mlx eval needle``: what is left of a fact that stands far back in a text."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fm_mlx.commands.arguments import whole
from fm_mlx.commands.eval_options import add_models, add_output, check_output

if TYPE_CHECKING:
    from fm_mlx.evaluation.needle import Cell

DESCRIPTION = (
    'Hide a sentence such as "The secret number of Jericho is 73914." at several depths of hay of '
    "several lengths, ask for the number by the beginning of the same sentence, and say how much "
    "likelier the needle made it, how often it is the likeliest of 16 numbers, and how often "
    "greedy decoding says it. After RULER's S-NIAH-1 and, with --text, S-NIAH-2."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_models(parser)
    parser.add_argument(
        "--text", metavar="FILE", help="UTF-8 text to hide the facts in (default: a repeated noise)"
    )
    parser.add_argument(
        "--lengths",
        type=whole(1),
        nargs="+",
        default=[256, 1024, 4096],
        metavar="T",
        help="tokens of the hay (default: 256 1024 4096)",
    )
    parser.add_argument(
        "--depths",
        type=whole(2),
        default=5,
        help="places of the needle, from before the hay to after it (default: 5)",
    )
    parser.add_argument(
        "--samples",
        type=whole(1),
        default=10,
        help="facts for each length and depth (default: 10)",
    )
    parser.add_argument(
        "--values",
        choices=("number", "word"),
        default="number",
        help="what is hidden: a number of five digits or a common noun (default: number)",
    )
    parser.add_argument("--seed", type=whole(0), default=0, help="of the facts (default: 0)")
    add_output(parser, "what was found at each length and depth")


def run(args: argparse.Namespace) -> int:
    """Measure, print tables, and write what is asked for."""
    from tqdm import tqdm

    from fm_mlx.evaluation import needle, pictures
    from fm_mlx.evaluation.hay import Hay
    from fm_mlx.evaluation.models import load_any, names_of
    from fm_mlx.evaluation.texts import read_tokens
    from fm_mlx.support.files import write_csv
    from fm_mlx.text import special_tokens

    check_output(args)
    lengths = sorted(set(args.lengths))
    found = []
    for name, path in zip(names_of(args.model), args.model, strict=True):
        model, tokenizer = load_any(path)
        tokens = None
        if args.text is not None:
            limit = args.samples * lengths[-1]
            tokens = read_tokens(tokenizer, Path(args.text), limit).ids
        with tqdm(
            desc=name,
            total=len(lengths) * args.samples * (args.depths + 1),
            unit=" questions",
            delay=2,
            leave=False,
            disable=not sys.stderr.isatty(),
        ) as bar:
            cells = needle.measure(
                model,
                tokenizer,
                Hay(tokenizer, tokens),
                lengths,
                args.depths,
                args.samples,
                kind=args.values,
                before=special_tokens(tokenizer)[0],
                seed=args.seed,
                progress=bar.update,
            )
        found.append((name, cells))
    print("\n\n".join("\n".join(_tables(name, cells)) for name, cells in found))
    if args.csv is not None:
        rows = (cell.row(name) for name, cells in found for cell in cells)
        write_csv(Path(args.csv), needle.HEADER, rows)
    if args.plot is not None:
        pictures.draw_needles(found, Path(args.plot))
    return 0


def _tables(name: str, cells: list[Cell]) -> list[str]:
    """Lines for the terminal: a table a measure, of depths by lengths."""
    from fm_mlx.evaluation.wording import CANDIDATES
    from fm_mlx.support.tables import aligned

    lines = [f"{name}: mean of {len(cells[0].answers)} facts; depth of the needle by tokens of hay"]
    for title, measure, form in (
        ("nats that the needle gains the right value", "gain", "{:z.2f}"),
        (f"nats gained on the {CANDIDATES - 1} other values", "gain_on_others", "{:z.2f}"),
        (f"right value first of {CANDIDATES} (by chance {1 / CANDIDATES:.0%})", "first", "{:.0%}"),
        ("right value decoded", "exact", "{:.0%}"),
    ):
        rows: dict[float | None, list[str]] = {}
        for cell in cells:
            depth = "no needle" if cell.depth is None else f"{cell.depth:.0%}"
            rows.setdefault(cell.depth, [depth]).append(form.format(getattr(cell, measure)))
        lengths = dict.fromkeys(f"{cell.length:,}" for cell in cells)
        lines += ["", title, *aligned([["depth", *lengths], *rows.values()])]
    return lines
