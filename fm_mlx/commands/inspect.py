"""``fm-mlx inspect``: show what a model does with a prompt, as a page and pictures."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fm_mlx.commands.arguments import whole
from fm_mlx.commands.reading import FileText, Progress, open_prompt
from fm_mlx.support.files import file_at
from fm_mlx.support.tables import aligned

if TYPE_CHECKING:
    from fm_mlx.inspection.observe import Observation

# Tokens that a page can show: more would be narrower than a pixel, and the file many megabytes.
MOST_SHOWN = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``fm-mlx inspect``."""
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument(
        "--prompt", "-p", help="text to read, as it stands; '-' reads standard input"
    )
    prompt.add_argument(
        "--prompt-file", metavar="FILE", help="UTF-8 text of any length; '-' reads standard input"
    )
    parser.add_argument(
        "--model", help="model folder or Hugging Face repository (default: the packaged model)"
    )
    parser.add_argument("--adapter-path", help="folder of LoRA adapters")
    parser.add_argument(
        "--output-dir",
        "-o",
        default="inspection",
        metavar="FOLDER",
        help="folder for index.html, affinities.png and rows.png, which are replaced if they are "
        "there (default: inspection)",
    )
    parser.add_argument(
        "--max-tokens-shown",
        type=whole(1),
        default=512,
        metavar="N",
        help="tokens to show one by one, the last of the prompt; the tables are over all of it "
        f"(default: 512; at most {MOST_SHOWN})",
    )


def run(args: argparse.Namespace) -> int:
    """Write the page and the pictures, and print the numbers of each layer."""
    folder = Path(args.output_dir)
    if args.max_tokens_shown > MOST_SHOWN:
        raise ValueError(
            f"--max-tokens-shown is {args.max_tokens_shown}; allowed are 1 to {MOST_SHOWN}"
        )
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output-dir {folder} is a file; allowed is a folder")
    with ExitStack() as files:
        text = open_prompt(args.prompt, args.prompt_file, files)
        return _inspect(args, folder, text)


def _inspect(args: argparse.Namespace, folder: Path, text: str | FileText) -> int:
    # heavy imports, after what can be checked without them
    from fm_mlx.inspection.observe import observe
    from fm_mlx.inspection.page import html_page
    from fm_mlx.inspection.tokens import TokenTexts
    from fm_mlx.loading import load
    from fm_mlx.text import encode_pieces

    model, tokenizer = load(args.model, adapter_path=args.adapter_path)
    pieces = encode_pieces(tokenizer, [text] if isinstance(text, str) else text)
    with Progress(text if isinstance(text, FileText) else None) as progress:
        seen = observe(
            model,
            pieces,
            keep=args.max_tokens_shown,
            vocabulary=len(tokenizer),
            progress=progress,
        )
    name = "the packaged model" if args.model is None else args.model
    page = html_page(seen, TokenTexts(tokenizer), name)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "index.html"]
    with file_at(written[0]) as scratch:
        scratch.write_text(page, encoding="utf-8")
    if find_spec("matplotlib") is None:
        print("No pictures: they need matplotlib, pip install 'fm-mlx[plot]'.", file=sys.stderr)
    else:
        from fm_mlx.inspection.pictures import draw

        written += draw(seen, folder)
    print("\n".join(_report(seen)))
    print(f"\nWritten: {', '.join(map(str, written))}")
    return 0


def _report(seen: Observation) -> list[str]:
    """The table of the layers."""
    from fm_mlx.inspection.page import shown_half_life

    rows = len(seen.layers[0].usage)
    table = [["layer", f"rows used of {rows}", "median half-life", "mean eta", "mean mu"]]
    for number, use in enumerate(seen.layers):
        table.append(
            [
                str(number),
                f"{use.rows_used:.1f}",
                shown_half_life(use.median_half_life),
                f"{use.mean_update_rate:.3f}",
                f"{use.mean_merge_rate:.3f}",
            ]
        )
    return [f"{seen.tokens:,} tokens", *aligned(table)]
