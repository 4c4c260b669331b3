"""Figures as files, for those who have matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fm_mlx.support.files import check_folder_of, file_at

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DOTS_PER_INCH = 120


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, whose parts make room for each other.

    Raises:
        ValueError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("a picture needs matplotlib: pip install 'fm-mlx[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def check_picture(path: Path) -> None:
    """Raise unless a figure can be saved at a path: to know before the work is done.

    Raises:
        FileNotFoundError: its folder is missing.
        ValueError: matplotlib is missing, or writes no files of this ending.
    """
    allowed = new_figure(1, 1).canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in allowed:
        raise ValueError(f"{path}: allowed endings of pictures are {', '.join(sorted(allowed))}")
    check_folder_of(path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure to a file, whose ending says of which kind.

    Raises:
        ValueError: matplotlib writes no files of this ending.
    """
    with file_at(path) as scratch:
        figure.savefig(scratch, dpi=_DOTS_PER_INCH)
