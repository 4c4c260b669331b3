"""What a model has read, as a file: read once, ask, branch, rewind.

    python examples/memories.py

The packaged model reads a part of Python's documentation and keeps what is left of it, its
memory, in a file. What one sees: the file is small; a question after loading is answered as if
the text had just been read; a branch reads on while the first memory stays as it was; and
rewinding gives back the earlier memory to the last bit. Nothing is left behind.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics

import fm_mlx

BOOK = topics["compound"][:15_000]
LETTER = (
    "And the king wrote a letter, and sealed it with his ring, and sent it by the hand of Tychicus."
)
QUESTION = "And it came to pass"


def main() -> None:
    model, tokenizer = fm_mlx.load()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "book.memory"

        started = time.perf_counter()
        memory = fm_mlx.remember(model, tokenizer, BOOK, name="book")
        memory.save(file)
        seconds = time.perf_counter() - started
        size = file.stat().st_size
        print(f"Read {memory.tokens_seen:,} tokens in {seconds:.1f} s; the file has {size:,} bytes")

        loaded = fm_mlx.Memory.load(file)
        started = time.perf_counter()
        answer = fm_mlx.generate(model, tokenizer, QUESTION, max_tokens=24, memory=loaded)
        seconds = time.perf_counter() - started
        print(f"Asked after loading, {seconds:.1f} s: {QUESTION}{answer!r}")
        again = fm_mlx.generate(model, tokenizer, QUESTION, max_tokens=24, memory=memory)
        print(f"The same as before saving: {answer == again}")

    longer = loaded.append(model, tokenizer, LETTER, name="letter")
    answer = fm_mlx.generate(model, tokenizer, QUESTION, max_tokens=24, memory=longer)
    print(f"A branch that read a letter too: {QUESTION}{answer!r}")
    for title, one in (("first memory", loaded), ("branch", longer)):
        print(f"The {title} read {[f'{text.name}: {text.tokens:,}' for text in one.texts]}")

    back = longer.rewind(model, tokenizer, loaded.tokens_seen)
    print(f"Rewound to before the letter, bit for bit: {back.digest == loaded.digest}")
    half = longer.rewind(model, tokenizer, loaded.tokens_seen // 2, [BOOK])
    print(f"Rewound to the middle of the book: {half.tokens_seen:,} tokens")


if __name__ == "__main__":
    main()
