"""The texts of the Metal files."""

from __future__ import annotations

import re
from pathlib import Path

_SOURCES = Path(__file__).parent


def sources() -> list[str]:
    """Names of the Metal files that hold kernels, without their suffix."""
    return sorted(path.stem for path in _SOURCES.glob("*.metal"))


def metal_source(file_name: str) -> str:
    """The text of one of our Metal files, with our own includes put in, each once."""
    included: set[str] = set()

    def text(name: str) -> str:
        if name in included:
            return ""
        included.add(name)
        content = (_SOURCES / name).read_text(encoding="ascii").replace("#pragma once\n", "")
        return re.sub(r'#include "([\w.]+)"\n', lambda match: text(match[1]), content)

    return text(file_name)
