"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
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


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object to a file of JSON."""
    with file_at(path) as scratch:
        scratch.write_text(json.dumps(content, indent=2) + "\n")
