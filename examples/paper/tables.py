"""The tables of docs/evidence.md and of the packaged model's card, from the results.

python examples/paper/tables.py rates
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Iterator

import runs

CONTEXTS = (256, 1024, 4096, 16384)
NAMES = {
    "fm": "FM",
    "fm_one_row": "FM, one row",
    "fm_convolved": "FM + convolution",
    "fm_product": "FM + convolution, product keys",
    "fm_balanced": "FM, balanced",
    "llama": "llama",
    "mamba2": "mamba2",
    "gated_delta": "gated delta",
}


def measured_arms() -> list[str]:
    """The arms of rates.csv, in the order of their names here."""
    measured = {line["arm"] for line in runs.lines_of("rates")}
    return [arm for arm in NAMES if arm in measured]


def seeds_of(arm: str) -> list[dict[str, str]]:
    """The lines of an arm's best learning rate, one for each seed."""
    lines = [line for line in runs.lines_of("rates") if line["arm"] == arm]
    first = [line for line in lines if line["seed"] == "0"]
    best = min(first, key=lambda line: float(line["nats at 256"]))["learning rate"]
    return [line for line in lines if line["learning rate"] == best]


def mean_and_deviation(lines: list[dict[str, str]], column: str) -> tuple[float, float]:
    """The mean of a column, and its standard deviation (0 of a single line)."""
    values = [float(line[column]) for line in lines]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def shown(mean: float, deviation: float, count: int) -> str:
    """A mean, with its deviation if there is more than one value."""
    return f"{mean:.3f} ± {deviation:.3f}" if count > 1 else f"{mean:.3f}"


def rates() -> Iterator[list[str]]:
    """Loss of the arms at their best learning rates, by context."""
    yield ["", "parameters", "rate", "seeds", *(f"{context:,}" for context in CONTEXTS)]
    for arm in measured_arms():
        lines = seeds_of(arm)
        losses = [mean_and_deviation(lines, f"nats at {context}") for context in CONTEXTS]
        yield [
            NAMES[arm],
            f"{int(lines[0]['parameters']):,}",
            lines[0]["learning rate"],
            str(len(lines)),
            *(shown(mean, deviation, len(lines)) for mean, deviation in losses),
        ]


def shape_of(line: dict[str, str]) -> tuple[int, int, float]:
    """m, k and tau of a line of rows.csv."""
    changes = json.loads(line["changes"])
    return (
        changes.get("num_memory_states", 32),
        changes["num_active_states"],
        changes.get("affinity_temperature", 1.0),
    )


def rows() -> Iterator[list[str]]:
    """Loss by rows, active rows and temperature, the best first."""
    yield ["", "m", "k", "tau", "nats at 256", "nats at 16,384", "rows used, by layer"]
    lines = sorted(runs.lines_of("rows"), key=lambda line: float(line["nats at 256"]))
    for line in lines:
        m, k, tau = shape_of(line)
        losses = (f"{float(line[f'nats at {context}']):.3f}" for context in (256, 16384))
        yield [NAMES[line["arm"]], str(m), str(k), f"{tau:g}", *losses, line.get("rows used", "")]


def recall() -> Iterator[list[str]]:
    """Shares of values recalled, one line a run; of several learning rates the better."""
    lines = runs.lines_of("recall")
    settings = [column for column in lines[0] if column.startswith("recalled of ")]
    yield ["", "m", "k", "dense share", "trained on", "rate", "seed", "last loss"] + [
        setting.removeprefix("recalled of ") for setting in settings
    ]
    best: dict[tuple[str, ...], dict[str, str]] = {}
    for line in lines:
        which = ("arm", "m", "k", "dense share", "trained on", "seed")
        key = tuple(line[column] for column in which)
        if key not in best or float(line["last loss"]) < float(best[key]["last loss"]):
            best[key] = line
    order = list(NAMES)
    for line in sorted(
        best.values(),
        key=lambda line: (
            order.index(line["arm"]),
            float(line["dense share"]) > 0,
            int(line["m"]),
            int(line["k"]),
            float(line["dense share"]),
            len(line["trained on"]),
            int(line["seed"]),
        ),
    ):
        shape = [line["m"], line["k"]] if line["m"] != "0" else ["", ""]
        share = f"{float(line['dense share']):.0%}" if line["m"] != "0" else ""
        shares = (f"{float(line[setting]):.1%}" for setting in settings)
        loss = f"{float(line['last loss']):.2f}"
        how = [share, line["trained on"], line["learning rate"], line["seed"], loss]
        yield [NAMES[line["arm"]], *shape, *how, *shares]


def generation() -> Iterator[list[str]]:
    """Milliseconds of a token and bytes of the cache, by context."""
    arms = ("fm", "llama", "mamba2")
    known = {(line["arm"], int(line["context"])): line for line in runs.lines_of("generation")}
    yield ["context"] + [
        f"{NAMES[arm]}, {what}" for what in ("ms a token", "MB", "s to read") for arm in arms
    ]
    for context in sorted({context for _, context in known}):
        lines = [known[arm, context] for arm in arms]
        yield [
            f"{context:,}",
            *(f"{float(line['ms a token']):.2f}" for line in lines),
            *(f"{int(line['cache bytes']) / 1e6:.2f}" for line in lines),
            *(
                line["seconds to read"] and f"{float(line['seconds to read']):.1f}"
                for line in lines
            ),
        ]


def losses_by(table: str, line: str, column: str) -> Iterator[list[str]]:
    """Bits per byte, a line for each value of one key of a table and a column for each model."""
    losses = {
        (known[line], known["model"]): float(known["bits per byte"])
        for known in runs.lines_of(table)
    }
    models = list(dict.fromkeys(model for _, model in losses))
    yield [column, *models]
    for value in dict.fromkeys(value for value, _ in losses):
        known = (losses.get((value, model)) for model in models)
        yield [value, *("" if loss is None else f"{loss:.3f}" for loss in known)]


def packaged() -> Iterator[list[str]]:
    """Held-out bits per byte by context, of the packaged model and of others of its size."""
    return losses_by("packaged", "context", "context")


def versions() -> Iterator[list[str]]:
    """Held-out bits per byte by text, of the versions of the packaged model."""
    return losses_by("versions", "text", "text")


TABLES = {
    "rates": rates,
    "rows": rows,
    "recall": recall,
    "generation": generation,
    "packaged": packaged,
    "versions": versions,
}


def markdown(table: Iterable[list[str]]) -> str:
    """Rows of cells, the first the header, as a table in Markdown."""
    header, *body = table
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=TABLES)
    print(markdown(TABLES[parser.parse_args().table]()))


if __name__ == "__main__":
    main()
