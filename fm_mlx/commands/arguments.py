"""Types of command-line options whose bad values end in one clear line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any


def whole(least: int) -> Callable[[str], int]:
    """Whole numbers from `least`."""

    def convert(text: str) -> int:
        value = parsed(int, text)
        if value is None or not least <= value < 2**63:
            raise argparse.ArgumentTypeError(f"{text!r}; allowed are whole numbers from {least}")
        return value

    return convert


def number(least: float, most: float = math.inf) -> Callable[[str], float]:
    """Finite numbers from `least` to `most`."""

    def convert(text: str) -> float:
        value = parsed(float, text)
        if value is None or not math.isfinite(value) or not least <= value <= most:
            allowed = f"from {least}" + ("" if math.isinf(most) else f" to {most}")
            raise argparse.ArgumentTypeError(f"{text!r}; allowed are numbers {allowed}")
        return value

    return convert


def parsed(convert: Callable[[str], Any], text: str) -> Any:
    """The text converted; None if it cannot be."""
    try:
        return convert(text)
    except ValueError:
        return None
