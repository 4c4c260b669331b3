"""Where the figures of an evidence run go: a file of JSON beside the machine they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fm_mlx.perf.timing import device_line
from fm_mlx.support.files import write_json

FOLDER = Path(__file__).parent / "results"


def record(name: str, content: dict[str, Any]) -> None:
    """Print figures, and write them to results/NAME.json."""
    content = {"machine": device_line(), **content}
    FOLDER.mkdir(exist_ok=True)
    write_json(FOLDER / f"{name}.json", content)
    print(json.dumps(content, indent=2))
