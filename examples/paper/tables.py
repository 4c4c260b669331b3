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
    """Shares of values recalled, the seeds of a training in one line; of several rates the better.

    Of more seeds than one the mean is given, and between what it was.
    """
    lines = runs.lines_of("recall")
    settings = [column for column in lines[0] if column.startswith("recalled of ")]
    header = ["", "m", "k", "router scale", "dense share", "trained on", "rate"]
    asked = (setting.removeprefix("recalled of ") for setting in settings)
    yield [*header, "last loss, by seed", *asked]
    trainings: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for line in lines:
        which = ("arm", "m", "k", "router scale", "dense share", "trained on")
        of_seeds = trainings.setdefault(tuple(line[column] for column in which), {})
        known = of_seeds.get(line["seed"])
        if known is None or float(line["last loss"]) < float(known["last loss"]):
            of_seeds[line["seed"]] = line

    def place(training: tuple[str, ...]) -> tuple[float, ...]:
        arm, m, k, scale, share, on = training
        scale, share = float(scale or 1), float(share)
        arms = list(NAMES).index(arm)
        return arms, scale > 1, share > 0, int(m), int(k), share, scale, len(on)

    for training in sorted(trainings, key=place):
        arm, m, k, scale, share, on = training
        seeds = [line for _, line in sorted(trainings[training].items())]
        how = [m, k, f"{float(scale):g}", f"{float(share):.0%}"] if m != "0" else [""] * 4
        losses = " ".join(f"{float(line['last loss']):.2f}" for line in seeds)
        shares = (_shares([float(line[setting]) for line in seeds]) for setting in settings)
        yield [NAMES[arm], *how, on, seeds[0]["learning rate"], losses, *shares]


def _shares(shares: list[float]) -> str:
    """A share; of several the mean, and between what they are."""
    if len(shares) == 1:
        return f"{shares[0]:.1%}"
    return f"{statistics.mean(shares):.1%} ({min(shares):.0%} to {max(shares):.0%})"


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
