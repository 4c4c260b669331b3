"""A prompt of any length: time grows with it, memory does not.

    python examples/long_generation.py           # 128,000 characters of Python's documentation
    python examples/long_generation.py FILE --chars 5000000

The packaged model reads three beginnings of a file, each four times as long as the one before, and
goes on from each. The file is read as it is consumed, so that neither the text nor its tokens are
ever held whole, and the state of a recurrent model has one size. What one sees: the tokens read,
the time, and the peak memory, which stops growing once a prompt is longer than the 2,048 tokens
that are read at a time.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import mlx.core as mx

import fm_mlx

PIECE = 4096
DOCUMENTATION = "\n\n".join(topics[name] for name in sorted(topics))


def beginning(path: Path | None, size: int) -> Iterator[str]:
    """The first `size` characters of a file (None: of Python's documentation), piece by piece."""
    with path.open(encoding="utf-8") if path else io.StringIO(DOCUMENTATION) as text:
        while size > 0 and (piece := text.read(min(PIECE, size))):
            yield piece
            size -= len(piece)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?", help="a UTF-8 text of any length")
    parser.add_argument("--chars", type=int, default=128_000, help="of the longest (128000)")
    args = parser.parse_args()
    if args.file and not args.file.is_file():
        parser.error(f"no such file: {args.file}")
    if args.chars < 16:
        parser.error(f"--chars is {args.chars}; allowed are whole numbers from 16")
    model, tokenizer = fm_mlx.load()
    fm_mlx.generate(model, tokenizer, "And", max_tokens=1)  # what is compiled once, is by now
    for size in (args.chars // 16, args.chars // 4, args.chars):
        mx.clear_cache()
        mx.reset_peak_memory()
        started = time.perf_counter()
        text = ""
        for response in fm_mlx.stream_generate(
            model, tokenizer, beginning(args.file, size), max_tokens=16
        ):
            text += response.text
        seconds = time.perf_counter() - started
        print(
            f"{response.prompt_tokens:9,} tokens read in {seconds:6.1f} s, "
            f"peak memory {mx.get_peak_memory() / 1e6:.1f} MB, then {text!r}",
            flush=True,
        )


if __name__ == "__main__":
    main()
