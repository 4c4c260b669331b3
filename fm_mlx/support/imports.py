"""What is imported, and what need not be."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast


@contextmanager
def without_pytorch() -> Iterator[None]:
    """Let what is imported inside a ``with`` block find no PyTorch, unless it is imported already.

    transformers, whose tokenizers mlx-lm uses, imports it wherever it is installed: more than half
    of the time in which a command starts.
    """
    if "torch" in sys.modules:
        yield
        return
    modules = cast(dict[str, Any], sys.modules)
    modules["torch"] = None  # Python then says that there is no such module
    try:
        yield
    finally:
        del modules["torch"]
