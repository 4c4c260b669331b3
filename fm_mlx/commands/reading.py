"""Text that is read while it is consumed, and how far it is."""

from __future__ import annotations

import codecs
import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

_READ_BYTES = 16384

# Prompt tokens after which memory should no longer grow.
SETTLED = 4096


class FileText:
    """The text of an open UTF-8 file, iterated over in pieces; line ends become ``\\n``.

    Attributes:
        bytes_read: How many bytes of the file were read so far.
        size: The size of the file in bytes; None if it is not known.

    Raises:
        ValueError: the file is empty, or not UTF-8; from the iteration.
    """

    def __init__(self, file: BinaryIO, name: str, size: int | None):
        self._file = file
        self._name = name
        self.size = size
        self.bytes_read = 0

    def __iter__(self) -> Iterator[str]:
        utf8 = codecs.getincrementaldecoder("utf-8")()
        decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
        while True:
            data = self._file.read(_READ_BYTES)
            pending = len(utf8.getstate()[0])
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                offset = self.bytes_read - pending + error.start
                raise ValueError(
                    f"{self._name} is not UTF-8 text: {error.reason} at byte {offset}"
                ) from error
            self.bytes_read += len(data)
            if text:
                yield text
            if not data:
                break
        if not self.bytes_read:
            raise ValueError(f"the prompt is empty: {self._name} has no text")


class Progress:
    """Follows the reading of a prompt: a bar where it takes long, and the memory it takes.

    The bar goes to standard error, if that is a terminal, after two seconds.

    Attributes:
        settled_peak: MLX's peak memory in bytes once 4096 tokens had been read.
    """

    def __init__(self, file: FileText | None):
        from tqdm import tqdm

        self.settled_peak: int | None = None
        self._file = file if file is not None and file.size is not None else None
        self._started = time.perf_counter()
        unit: dict[str, Any] = {"unit": " tokens"}
        if self._file is not None:
            unit = {
                "total": self._file.size,
                "bar_format": "{l_bar}{bar}| {remaining} left{postfix}",
            }
        self._bar = tqdm(
            desc="Reading",
            delay=2,
            leave=False,
            disable=not sys.stderr.isatty(),
            file=sys.stderr,
            **unit,
        )

    def __call__(self, read: int, total: int | None) -> None:
        import mlx.core as mx

        if read >= SETTLED and self.settled_peak is None:
            self.settled_peak = mx.get_peak_memory()
        if self._file is None:
            self._bar.total = total
            self._bar.update(read - self._bar.n)
            return
        speed = read / max(time.perf_counter() - self._started, 1e-9)
        self._bar.set_postfix_str(f"{read:,} tokens, {speed:,.0f} tokens/s", refresh=False)
        self._bar.update(self._file.bytes_read - self._bar.n)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def open_prompt(prompt: str | None, prompt_file: str | None, files: ExitStack) -> str | FileText:
    """The prompt that --prompt or --prompt-file gives: text, or a file whose text is read later.

    Args:
        prompt: "-" stands for standard input.
        prompt_file: "-" stands for standard input.
        files: closes the file in the end.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or no text.
    """
    if prompt is not None:
        prompt = prompt.replace("\\n", "\n").replace("\\t", "\t")
        if not prompt:
            raise ValueError("the prompt is empty: --prompt has no text")
        if prompt != "-":
            return prompt
    if prompt_file in (None, "-"):
        return FileText(sys.stdin.buffer, "standard input", None)
    path = Path(prompt_file)
    if path.is_dir():
        raise ValueError(f"--prompt-file {path} is a folder; allowed is a text file")
    if not path.exists():
        raise FileNotFoundError(f"no prompt file {path}: no such file")
    file = files.enter_context(path.open("rb"))
    return FileText(file, str(path), os.fstat(file.fileno()).st_size if path.is_file() else None)
