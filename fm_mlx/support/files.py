"""Files and folders that appear whole or not at all, and reading what others wrote."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def file_at(path: Path) -> Iterator[Path]:
    """A path to write to, moved to `path` when all is done; removed if not.

    It has the suffix of `path` and stands beside it under a hidden name.
    """
    scratch = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield scratch
        with scratch.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def folder_at(path: Path) -> Iterator[Path]:
    """A new folder to write to, moved to `path` when all is done; removed if not.

    Raises:
        ValueError: if something is at `path` already.
    """
    if path.exists():
        raise ValueError(f"{path} is there already: remove it, or give another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        if path.exists():
            raise ValueError(f"{path} was made by someone else meanwhile")
        os.rename(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_regular(path: Path) -> None:
    """Raise unless there is a regular file at a path: a named pipe would be waited for.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if there is something else.
    """
    if not path.exists():
        raise FileNotFoundError(f"no {path.name} in {path.parent}")
    if not path.is_file():
        kind = "folder" if path.is_dir() else "pipe, socket or device"
        raise ValueError(f"{path} is a {kind}; allowed is a regular file")


def check_folder_of(path: Path) -> None:
    """Raise unless the folder is there that a file is to be written in.

    Raises:
        FileNotFoundError: if it is not.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}")


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    check_regular(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {brief(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; allowed is an object")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object to a file of JSON."""
    with file_at(path) as scratch:
        scratch.write_text(json.dumps(content, indent=2) + "\n")


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a table to a file of comma-separated values."""
    with file_at(path) as scratch, scratch.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def brief(error: BaseException) -> str:
    """An error's text in one line of bounded length; of a long list its head and its length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    hidden = len(lines) - 4
    if hidden > 0:
        lines[4:] = [f"and {hidden} more"]
    text = " ".join(lines)
    if isinstance(error, KeyError) or not text:
        text = repr(error)
    return text if len(text) <= 600 else f"{text[:600]}..."
