"""Findings for what reads them beside people: SARIF files, and annotations of GitHub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from .record import Found

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def sarif(found: Sequence[Found]) -> dict[str, Any]:
    """A SARIF 2.1.0 log, which GitHub shows in a repository's code scanning."""
    kinds = sorted({f.kind for f in found})
    rules = [{"id": kind, "shortDescription": {"text": kind.replace("-", " ")}} for kind in kinds]
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "Metal simulator", "rules": rules}},
                "results": [_result(f, kinds.index(f.kind)) for f in found],
            }
        ],
    }


def _result(found: Found, rule: int) -> dict[str, Any]:
    path = PurePath(found.path)
    uri = path.as_uri() if path.is_absolute() else path.as_posix()
    location = {"artifactLocation": {"uri": uri}, "region": {"startLine": max(found.line, 1)}}
    return {
        "ruleId": found.kind,
        "ruleIndex": rule,
        "level": "error" if found.fatal else "warning",
        "message": {"text": f"{found.text} [{found.kernel}]"},
        "locations": [{"physicalLocation": location}],
    }


def write_sarif(path: str, found: Sequence[Found]) -> None:
    """Write a SARIF log to a file, whose folder is made if need be."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(sarif(found), indent=2) + "\n")


def github(found: Found) -> str:
    """The line that makes GitHub show a finding beside the line of the file."""
    command = "error" if found.fatal else "warning"
    place = f"file={_escaped(found.path, ':,')},line={found.line},title={found.kind}"
    return f"::{command} {place}::{_escaped(f'{found.text} [{found.kernel}]')}"


def _escaped(text: str, further: str = "") -> str:
    """A text as GitHub's workflow commands want it: some characters as %XX."""
    for character in ("%", "\r", "\n", *further):
        text = text.replace(character, f"%{ord(character):02X}")
    return text
