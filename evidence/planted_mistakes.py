"""What the simulator tells of kernels with one planted mistake each, and of correct ones.

    python evidence/planted_mistakes.py          # runs them and prints what became of each
    python evidence/planted_mistakes.py kinds    # of the last run: how many are told, by kind
    python evidence/planted_mistakes.py bugs     # of the last run: the bugs of public kernels

The kernels are those of tests/simulator/planted and tests/simulator/public_bugs. Every one runs
in both schedules; a mistake is told if a finding of the right kind names the marked line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# The kernels are imported where they are run: to print a table of the last run needs none.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests/simulator"))
if TYPE_CHECKING:
    from planted import Case, Mistake

    from fm_mlx.metal_kernels.simulator import Finding

RESULTS = Path(__file__).parent / "results/planted_mistakes.json"
SCHEDULES = ("forward", "random")

Rows = list[list[str]]


def measured() -> dict[str, Any]:
    """Run every kernel in every schedule."""
    from planted import CASES
    from public_bugs import BUGS

    from fm_mlx.metal_kernels.simulator.compilation.clang import find_compiler

    return {
        "compiler": find_compiler().version.splitlines()[0],
        "mistakes": [
            {"kernel": case.name, **_told(case, mistake)}
            for case in CASES
            for mistake in case.mistakes
        ],
        "correct kernels": [_accused(case) for case in CASES],
        "public bugs": [
            {
                "repository": bug.repository,
                "places": list(bug.places),
                **_told(bug.case, bug.case.mistakes[0]),
                "corrected": _accused(bug.case),
            }
            for bug in BUGS
        ],
    }


def _told(case: Case, mistake: Mistake) -> dict[str, Any]:
    """Which finding tells a mistake in each schedule, and which there are."""
    from planted import run, telling

    wrong = case.planted(mistake)
    told: dict[str, Any] = {
        "mistake": mistake.name,
        "kind": mistake.kinds[0],
        "lines": [f"{file}:{line}" for file, line in sorted(wrong.marked())],
    }
    for order in SCHEDULES:
        findings = run(wrong, order).findings
        finding = telling(case, mistake, findings)
        told[order] = {
            "told": _place(finding) if finding else None,
            "findings": list(dict.fromkeys(map(_place, findings))),
        }
    return told


def _accused(case: Case) -> dict[str, Any]:
    """What is found in a correct kernel, and whether its numbers are right."""
    from planted import difference, run

    result: dict[str, Any] = {"kernel": case.name, "about": case.about}
    for order in SCHEDULES:
        outcome = run(case, order)
        result[order] = {
            "findings": [_place(finding) for finding in outcome.findings],
            "difference": difference(case, outcome.outputs),
        }
    return result


def _place(finding: Finding) -> str:
    return f"{finding.kind} {finding.file}:{finding.line}" if finding.line else finding.kind


def every(results: dict[str, Any]) -> Rows:
    """A row a mistake."""
    rows = [["kernel", "mistake", "kind", "marked", "told", *SCHEDULES]]
    for line in results["mistakes"]:
        told = [order for order in SCHEDULES if line[order]["told"]]
        rows.append(
            [
                *(line[name] for name in ("kernel", "mistake", "kind")),
                ", ".join(line["lines"]),
                "yes" if len(told) == len(SCHEDULES) else ", ".join(told) or "no",
                *(line[order]["told"] or "; ".join(line[order]["findings"]) for order in SCHEDULES),
            ]
        )
    return rows


def kinds(results: dict[str, Any]) -> Rows:
    """A row a kind of finding: planted mistakes, and how many are told."""
    rows = [["kind", "planted", *(f"told, {order}" for order in SCHEDULES)]]
    names = sorted({line["kind"] for line in results["mistakes"]})
    for name in [*names, ""]:
        lines = [line for line in results["mistakes"] if line["kind"] == name or not name]
        told = [sum(bool(line[order]["told"]) for line in lines) for order in SCHEDULES]
        rows.append([f"`{name}`" if name else "all", str(len(lines)), *map(str, told)])
    correct = results["correct kernels"]
    clean = [sum(not line[order]["findings"] for line in correct) for order in SCHEDULES]
    rows.append(["correct kernels, without finding", str(len(correct)), *map(str, clean)])
    return rows


def bugs(results: dict[str, Any]) -> Rows:
    """A row a bug of a public kernel."""
    rows = [["where", "mistake", "what is found"]]
    for line in results["public bugs"]:
        found = dict.fromkeys(kind for order in SCHEDULES for kind in _kinds(line[order]))
        where = "<br>".join(f"`{place}`" for place in line["places"])
        rows.append(
            [
                f"{line['repository']}<br>{where}",
                line["mistake"],
                ", ".join(f"`{kind}`" for kind in found),
            ]
        )
    return rows


def _kinds(told: dict[str, Any]) -> list[str]:
    return [finding.split()[0] for finding in told["findings"]]


TABLES: dict[str, Callable[[dict[str, Any]], Rows]] = {"kinds": kinds, "bugs": bugs}


def main(argv: Sequence[str]) -> int:
    """Run everything and print a table of it, or one of the tables of the last run."""
    if not argv:
        from fm_mlx.support.files import write_json

        results = measured()
        write_json(RESULTS, results)
        table = every(results)
    elif len(argv) == 1 and argv[0] in TABLES:
        table = TABLES[argv[0]](json.loads(RESULTS.read_text(encoding="utf-8")))
    else:
        print(f"usage: python evidence/planted_mistakes.py [{'|'.join(TABLES)}]", file=sys.stderr)
        return 2
    head, *body = table
    for row in (head, ["---"] * len(head), *body):
        print(_line(row))
    return 0


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
