"""MLX's own Metal headers, put where a text includes them: clang needs them rewritten too."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

from .refusals import NotSimulated

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*["<](mlx/[^">]+)[">][^\n]*', re.MULTILINE)
_ONCE = re.compile(r"^[ \t]*#[ \t]*pragma[ \t]+once[^\n]*", re.MULTILINE)
# What stands before every kernel, as MLX puts it there.
_PREAMBLE = "mlx/backend/metal/kernels/utils.h"
_TENSORS = "MetalPerformancePrimitives"
_OWN = Path(__file__).parents[1] / "include"


def with_mlx_headers(text: str) -> str:
    """The text with every header of MLX in the place of its ``#include``, once.

    Those that stand before every kernel are left out, those that are not there are left as
    they are. Line numbers are those of the text, and of each header under its own name.

    Raises:
        NotSimulated: for a header that needs Metal 4's tensors.
    """
    if not _INCLUDE.search(text):
        return text
    return _inlined(text, "header", set(_in_preamble()))


def _inlined(text: str, name: str, seen: set[str]) -> str:
    def replaced(match: re.Match) -> str:
        included = match[1]
        if included in seen:
            return ""
        path = _path(included)
        if path is None:
            return match[0]
        seen.add(included)
        line = text.count("\n", 0, match.start()) + 1
        content = _ONCE.sub("", path.read_text())
        if _TENSORS in content:
            raise NotSimulated(line, f"Metal 4 tensors, which {included} needs,")
        try:
            inside = _inlined(content, included, seen)
        except NotSimulated as refused:
            raise NotSimulated(line, refused.what) from None
        return f'#line 1 "{included}"\n{inside}\n#line {line} "{name}"\n'

    return _INCLUDE.sub(replaced, text)


@cache
def _in_preamble() -> frozenset[str]:
    """The header that MLX puts before every kernel, and what it includes."""
    found, left = set(), [_PREAMBLE]
    while left:
        name = left.pop()
        path = _path(name)
        if name not in found and path is not None:
            found.add(name)
            left += _INCLUDE.findall(path.read_text())
    return frozenset(found)


def _path(name: str) -> Path | None:
    """Where a header is: this package has some in place of MLX's."""
    spec = importlib.util.find_spec("mlx")
    locations = (spec.submodule_search_locations or []) if spec else []
    for folder in (_OWN, *(Path(location, "include") for location in locations)):
        if (folder / name).is_file():
            return folder / name
    return None
