"""The tables of the documentation that come from results/, as Markdown.

    python evidence/tables.py batches

A document names the command in a comment before its table, and tests/test_documents.py compares
the two.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

FOLDER = Path(__file__).parent / "results"

Rows = list[list[str]]


def batches(results: dict[str, Any]) -> Rows:
    """Tokens per second of many rows (docs/performance.md)."""
    rows = [["rows", "fm", "fm, each row from a memory", "llama", "mamba2"]]
    rows[0] += ["fm : llama", "fm : mamba2"]
    for line in results["rows"]:
        speeds = [line["tokens/s"][name] for name in ("fm", "fm with memories", "llama", "mamba2")]
        ratios = [line["ratios"][name] for name in rows[0][-2:]]
        rows.append(
            [str(line["rows"]), *map(_whole, speeds), *(f"{ratio:.2f}x" for ratio in ratios)]
        )
    return rows


def bench(results: dict[str, Any]) -> Rows:
    """FM, llama and mamba2: medians of all runs, and the least and the largest ratio
    (docs/performance.md)."""
    rows = [["", "fm", "llama", "mamba2", "fm : llama", "fm : mamba2"]]
    for label in results["runs"][0]["figures"] | results["runs"][-1]["figures"]:
        runs = _having(results, label)
        form = ".2f" if label.endswith("ms/token") else ",.0f"
        cells = [f"{median(run[name] for run in runs):{form}}" for name in rows[0][1:4]]
        rows.append([label, *cells, *(_spread(runs, name, ".2f") for name in rows[0][4:])])
    return rows


def bench_in_brief(results: dict[str, Any]) -> Rows:
    """The same of three figures, to one decimal (README.md)."""
    rows = [["", "fm", "fm : llama", "fm : mamba2"]]
    for label, form in (
        ("prefill 8192, tokens/s", ",.0f"),
        ("decode after 8192, ms/token", ".1f"),
        ("training T=1024, tokens/s", ",.0f"),
    ):
        runs = _having(results, label)
        what, unit = label.split(", ")
        speed = f"{median(run['fm'] for run in runs):{form}} {unit}"
        rows.append([what, speed, *(_spread(runs, name, ".1f") for name in rows[0][2:])])
    return rows


def _having(results: dict[str, Any], label: str) -> list[dict[str, float]]:
    """A figure of every run that measured it."""
    return [run["figures"][label] for run in results["runs"] if label in run["figures"]]


def _spread(runs: Sequence[dict[str, float]], name: str, form: str) -> str:
    """The median of a ratio, and between what it was."""
    ratios = [run[name] for run in runs]
    least, middle, most = (f"{x:{form}}" for x in (min(ratios), median(ratios), max(ratios)))
    return f"{middle}x" if least == most else f"{middle}x ({least} to {most})"


def many_rows(results: dict[str, Any]) -> Rows:
    """What the number of rows costs (docs/performance.md)."""
    lines = results["microseconds a token"]
    few = {line["k"]: line for line in lines if (line["router"], line["m"]) == ("linear", 64)}
    rows = [["router", "m", "k", "decode, ms", "of it router", "beside it", "prompt, us"]]
    rows[0] += ["of it router", "beside it"]
    for line in lines:
        cells = [line["router"], _whole(line["m"]), str(line["k"])]
        for what, unit in (("decode", 1000), ("prompt", 1)):
            router = f"{what}, router"
            rest, of_few = (x[what] - x[router] for x in (line, few[line["k"]]))
            digits = ".2f" if unit > 1 else ",.0f"
            cells += [f"{line[name] / unit:{digits}}" for name in (what, router)]
            cells.append(f"{rest / of_few:.2f}x")
        rows.append(cells)
    return rows


def simulator_speed(results: dict[str, Any]) -> Rows:
    """How fast the simulator of Metal kernels is (docs/simulator-findings.md)."""
    first, *ways = [name for name in results["rates"][0] if name not in ("what", "unit")]
    rows = [["a second", first, *ways]]
    for line in results["rates"]:
        rate = f"{line[first]:,.0f}" if not line["unit"] else f"{line[first]:.1f} {line['unit']}"
        rows.append([line["what"], rate, *(f"{line[way] / line[first]:.2f}x" for way in ways)])
    return rows


def steps(results: dict[str, Any]) -> Rows:
    """A token on all rows, on the active ones, and in two buffers (docs/performance.md)."""
    forms = ("all rows", "active rows", "two buffers")
    rows = [["texts", "m", *forms, "taken with one state"]]
    for line in results["microseconds a layer and text"]:
        if (line["d"], line["k"]) == (256, 8):
            cells = [str(line["texts"]), str(line["m"]), *(_whole(line[form]) for form in forms)]
            rows.append([*cells, line["rule"]])
    return rows


def questions(results: dict[str, Any]) -> Rows:
    """Files of memories and prompt caches (docs/memories.md)."""
    names = {
        ("fm", "any"): "fm, the state alone",
        ("fm in 8 bits", "any"): "fm, the state alone in 8 bits",
        ("fm with 25 snapshots", "any"): "fm with the 25 snapshots of a million tokens",
        ("mamba2", "any"): "mamba2, mlx-lm's prompt cache",
        ("llama", "8192"): "llama, mlx-lm's prompt cache of 8,192 tokens",
        ("llama", "65536"): "llama, mlx-lm's prompt cache of 65,536 tokens",
    }
    files = {(line["model"], line["tokens"]): line for line in results["files of equal models"]}
    rows = [["", "file", "first logits"]]
    for key, name in names.items():
        milliseconds = files[key]["load and first logits, ms"]
        rows.append([name, _megabytes(files[key]["bytes"]), f"{_whole(milliseconds)} ms"])
    return rows


def second_turn(results: dict[str, Any]) -> Rows:
    """The turns of a conversation (docs/server.md)."""
    turns = {
        "first": "first turn",
        "second": "second turn",
        "third": "third turn",
        "first, edited": "first turn with other words in its last 1,000",
    }
    servers = ("fm-mlx server, fm", "mlx_lm.server, mamba2")
    rows = [["", "`fm-mlx server`, fm", "`mlx_lm.server`, mamba2"]]
    for key, name in turns.items():
        cells = [results[server][key] for server in servers]
        rows.append([name, *(f"{_seconds(c['seconds'])} s, {c['read']:,}" for c in cells)])
    return rows


def speculative(results: dict[str, Any]) -> Rows:
    """Accepted drafts a pass, and speed against plain decoding (docs/performance.md)."""
    prompts = {
        "repetitive (Numbers 7)": "Numbers 7",
        "held-out prose": "prose A",
        "more held-out prose": "prose B",
    }
    ways = ["look-up 4", "look-up 8", "draft 1", "draft 3"]
    rows = [["prompt, temperature", *ways]]
    for prompt, name in prompts.items():
        for temperature in (0.0, 0.7):
            lines = {
                line["drafts"]: line
                for line in results["rows"]
                if (line["prompt"], line["temperature"]) == (prompt, temperature)
            }
            cells = [
                f"{lines[way]['accepted_per_pass']:.2f}, {lines[way]['ratio']:.2f}x" for way in ways
            ]
            rows.append([f"{name}, {temperature:g}", *cells])
    return rows


TABLES: dict[str, Callable[[dict[str, Any]], Rows]] = {
    table.__name__: table
    for table in (
        *(
            batches,
            bench,
            bench_in_brief,
            many_rows,
            questions,
            second_turn,
            simulator_speed,
            speculative,
            steps,
        ),
    )
}
# The results of a table that is not named like them.
RESULTS = {"bench_in_brief": "bench"}


def main(argv: Sequence[str]) -> int:
    """Print the table of one run, whose results are in results/."""
    if len(argv) != 1 or argv[0] not in TABLES:
        print(f"usage: python evidence/tables.py {{{','.join(TABLES)}}}", file=sys.stderr)
        return 2
    content = (FOLDER / f"{RESULTS.get(argv[0], argv[0])}.json").read_text(encoding="utf-8")
    head, *body = TABLES[argv[0]](json.loads(content))
    for row in (head, ["---"] * len(head), *body):
        print(_line(row))
    return 0


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _whole(number: float) -> str:
    return f"{number:,.0f}"


def _seconds(number: float) -> str:
    return f"{number:.2f}" if number < 10 else f"{number:.1f}"


def _megabytes(number: int) -> str:
    megabytes = number / 1e6
    digits = 2 if megabytes < 1 else 1 if megabytes < 100 else 0
    return f"{megabytes:,.{digits}f} MB"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
