"""Options that the tasks of ``fm-mlx eval`` share: the models, and where the findings go."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_models(parser: argparse.ArgumentParser) -> None:
    """Add --model, which takes several."""
    parser.add_argument(
        "--model",
        nargs="+",
        default=["packaged"],
        help="model folders or Hugging Face repositories, of FM or any that mlx-lm knows; "
        "'packaged' is the model in the package, and the default",
    )


def add_output(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --plot and --csv."""
    parser.add_argument("--plot", metavar="PNG", help=f"draw {what}")
    parser.add_argument("--csv", metavar="CSV", help=f"write {what}")


def check_output(args: argparse.Namespace) -> None:
    """Raise unless --plot and --csv can be written, before anything is measured."""
    from fm_mlx.support.figures import check_picture
    from fm_mlx.support.files import check_folder_of

    if args.plot is not None:
        check_picture(Path(args.plot))
    if args.csv is not None:
        check_folder_of(Path(args.csv))
