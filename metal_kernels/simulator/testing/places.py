"""Where in the user's files a line of Metal text stands."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Files beside the one that makes a kernel in which its text may stand.
_TEXTS = (".py", ".metal", ".h", ".msl", ".txt")
_MOST_FOLDERS = 100

# How many lines around the one in question are compared.
_AROUND = 8


def place(
    definition: dict[str, Any], made_at: tuple[str, int], file: str, line: int
) -> tuple[str, int]:
    """The file and the line of a line of a kernel's text.

    It is looked for in the file that makes the kernel, then in those around it. What is put
    together by a program may stand nowhere: then it is where the kernel is made.

    Args:
        definition: the arguments that the kernel was made with.
        made_at: the file and the line that made it.
        file: "source" or "header".
        line: the line in it; 0 for none.
    """
    path, made_on = made_at
    text = definition.get(file, "") if file in ("source", "header") else ""
    lines = text.split("\n")
    if not (0 < line <= len(lines) and lines[line - 1].strip()):
        return path, made_on
    best = (0.0, path, made_on)
    for candidate in _candidates(path):
        score, found = _best_line(candidate, tuple(lines), line - 1)
        if score > best[0]:
            best = (score, candidate, found)
        if best[0] >= 1 and candidate == path:
            break
    return best[1:]


def _candidates(path: str) -> Iterator[str]:
    """A file, and those with texts in its folder and below; no hidden ones."""
    if not os.path.isfile(path):
        return
    yield path
    for folder, folders, files in itertools.islice(os.walk(os.path.dirname(path)), _MOST_FOLDERS):
        folders[:] = sorted(each for each in folders if not each.startswith((".", "_")))
        for name in sorted(files):
            file = os.path.join(folder, name)
            if name.endswith(_TEXTS) and file != path:
                yield file


@functools.cache
def _lines(path: str) -> tuple[str, ...]:
    """The lines of a file; a brace is written twice in an f-string."""
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ()
    return tuple(line.replace("{{", "{").replace("}}", "}").strip() for line in text.split("\n"))


@functools.cache
def _best_line(path: str, wanted: tuple[str, ...], at: int) -> tuple[float, int]:
    """How well the best line of a file fits a line of a text and its neighbours, and which."""
    lines, best = _lines(path), (0.0, 0)
    target = wanted[at].strip()
    for number, line in enumerate(lines):
        if target not in line:
            continue
        score = seen = 0
        for step in range(-_AROUND, _AROUND + 1):
            if 0 <= at + step < len(wanted) and (neighbour := wanted[at + step].strip()):
                seen += 1
                other = lines[number + step] if 0 <= number + step < len(lines) else ""
                # the first and the last line stand beside the quotes
                score += 1 if other == neighbour else 0.9 if neighbour in other else 0
        if score / seen > best[0]:
            best = (score / seen, number + 1)
    return best
