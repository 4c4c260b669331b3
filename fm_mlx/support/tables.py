"""Tables as lines of text."""

from __future__ import annotations

from collections.abc import Iterable


def aligned(rows: Iterable[Iterable[object]], left: int = 1) -> list[str]:
    """Rows of cells as lines; all but the first `left` columns are aligned to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
