"""The page docs/metal-coverage.md: what of Metal compiles and runs.

`python tests/simulator/coverage_page.py` writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlx_headers import GROUPS, PRODUCT, TENSORS
from probes import CHAPTERS, Chapter

PAGE = Path(__file__).parents[2] / "docs" / "metal-coverage.md"

_BEGINNING = """\
# What of Metal the simulator takes

By chapter of Apple's Metal Shading Language specification. `tests/simulator/test_coverage.py` runs
the probes behind every row (`tests/simulator/probes.py`) and compares this page with them.

* **runs**: compiled, executed, and its numbers checked,
* **refused**: one line says that it is not simulated, and where it stands,
* **missing**: does not compile.
"""


_ENDING = """\
## What differs

Two things differ silently. A comparison of vectors is a vector of `int` with -1 for true, until it
initialises, or is passed as, a `bool2`, `bool3` or `bool4`, or is converted (`float4(a < b)`): then
it is 1, as in Metal. Function constants are 0, because `metal_kernel` cannot set them.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([_BEGINNING, *map(_section, CHAPTERS), _mlx_headers(), _ENDING])


def _section(chapter: Chapter) -> str:
    return _table(
        chapter.title,
        [
            *((feature, "runs") for feature in chapter.runs),
            *((feature, "refused") for feature in chapter.refused),
            *((feature, "missing") for feature in chapter.missing),
        ],
    )


def _mlx_headers() -> str:
    rows = [(", ".join(names), "compile together") for names in (*GROUPS.values(), PRODUCT)]
    rows.append((f"{', '.join(TENSORS)}: they need Metal 4 tensors", "refused"))
    return _table("MLX's own headers", rows)


def _table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    lines = ["| | |", "| --- | --- |", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join([f"## {title}", "", *lines, ""])


if __name__ == "__main__":
    PAGE.write_text(page())
