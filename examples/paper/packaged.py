"""Held-out loss of the packaged model, of others of its size, and of its first version.

    python examples/pretrain.py --out runs/llama --arch llama --steps 2000   # and so on
    python examples/paper/packaged.py --texts runs/texts --model runs/llama

Appends to results/packaged.csv the loss of all held-out texts in windows of 256 to 65,536 tokens,
and with ``--each`` to results/versions.csv that of each text by itself, in windows of 4,096. What
is there is not measured again. A llama reads the longest windows in time that grows with their
square: ``--longest`` leaves them out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlx.nn as nn
import runs

from fm_mlx.evaluation import context
from fm_mlx.evaluation.models import load_any, names_of
from fm_mlx.evaluation.texts import read_tokens

sys.path.insert(0, str(Path(__file__).parents[1]))

import texts  # the examples beside this folder

CONTEXTS = (256, 512, 1024, 4096, 16384, 65536)
EACH = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["packaged"], help="(default: packaged)")
    parser.add_argument(
        "--texts", type=Path, required=True, metavar="FOLDER", help="that examples/texts.py wrote"
    )
    parser.add_argument("--each", action="store_true", help="each text by itself")
    parser.add_argument(
        "--longest", type=int, default=CONTEXTS[-1], metavar="T", help="tokens of a window at most"
    )
    args = parser.parse_args()
    files = [args.texts / f"{text.name}.heldout.txt" for text in texts.TEXTS]
    files = [file for file in files if file.stat().st_size]
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "all.heldout.txt"
        whole.write_text("".join(file.read_text("utf-8") for file in files), encoding="utf-8")
        for name, path in zip(names_of(args.model), args.model, strict=True):
            loaded = load_any(path)
            if args.each:
                for file in files:
                    measure("versions", name, *loaded, file, (EACH,))
            else:
                measure("packaged", name, *loaded, whole, CONTEXTS, args.longest)


def measure(
    table: str,
    name: str,
    model: nn.Module,
    tokenizer: Any,
    text: Path,
    contexts: tuple[int, ...],
    longest: int = EACH,
) -> None:
    """Append the losses of a model on a text, a line for each context.

    All contexts predict the same tokens: as many as fill windows of the longest of ``contexts``,
    measured or not. A text of fewer tokens than one such window is left out.
    """
    count = len(read_tokens(tokenizer, text, 1 << 20).ids)
    predicted = (count - 1) // contexts[-1] * contexts[-1]
    if not predicted:
        return
    ids, bytes_per_token = read_tokens(tokenizer, text, predicted + 1)
    for length in contexts:
        run = {"model": name, "text": text.name.removesuffix(".heldout.txt"), "context": length}
        if length > longest or runs.is_done(table, run):
            continue
        reading = context.measure(model, ids, bytes_per_token, [length])[0]
        losses = {
            "nats per token": round(reading.nats(), 4),
            "bits per byte": round(reading.bits_per_byte(), 4),
        }
        runs.append(table, run | {"tokens": predicted} | losses)


if __name__ == "__main__":
    main()
