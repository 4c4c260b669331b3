"""Tables of runs that go on where they were cut: a line of CSV for each run that is done."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from fm_mlx.support.files import write_csv

RESULTS = Path(__file__).parent / "results"


def path_of(name: str) -> Path:
    """The file of a table."""
    return RESULTS / f"{name}.csv"


def lines_of(name: str) -> list[dict[str, str]]:
    """The lines of a table, none if it is not there."""
    path = path_of(name)
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def is_done(name: str, run: dict[str, Any]) -> bool:
    """Whether a table has a line with all that a run is given by."""
    wanted = {key: str(value) for key, value in run.items()}
    return any(wanted.items() <= line.items() for line in lines_of(name))


def append(name: str, line: dict[str, Any]) -> None:
    """Print a line, and write the table anew with it at the end."""
    lines = [*lines_of(name), line]
    RESULTS.mkdir(exist_ok=True)
    columns = list(dict.fromkeys(column for known in lines for column in known))
    write_csv(path_of(name), columns, ([known.get(c, "") for c in columns] for known in lines))
    print(json.dumps(line), flush=True)
