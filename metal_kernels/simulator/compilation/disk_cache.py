"""Files kept for the next process, each written once and whole."""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

VARIABLE = "FM_MLX_CACHE"


def folder() -> Path:
    """Where the files are: $FM_MLX_CACHE, else the user's cache directory."""
    return _folder(os.environ.get(VARIABLE), os.environ.get("XDG_CACHE_HOME"), os.getcwd())


@cache
def _folder(named: str | None, caches: str | None, working: str) -> Path:
    """The folder as an absolute path: the compiler and the loader run elsewhere."""
    if named:
        return Path(working, named)
    if platform.system() == "Darwin":
        return Path.home() / "Library/Caches/fm-mlx"
    return Path(caches or Path.home() / ".cache") / "fm-mlx"


def cached(name: str, build: Callable[[Path], None], sidecar: str = "") -> Path:
    """A file of the cache; if it is not there, built under another name and then moved.

    Args:
        name: the name of the file, with a digest of all that goes into it.
        build: writes the file to the path it is given.
        sidecar: suffix of a second file that `build` writes beside the first.
    """
    path = folder() / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            built = Path(scratch, path.name)
            build(built)
            if sidecar:
                os.replace(built.with_suffix(sidecar), path.with_suffix(sidecar))
            os.replace(built, path)
    return path


def text_file(text: str) -> Callable[[Path], None]:
    """A `build` for `cached` that writes a text."""

    def build(path: Path) -> None:
        path.write_text(text)

    return build


def digest(*parts: str) -> str:
    """A short name for texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
