"""The figures of docs/evidence.md, drawn from the results.

python examples/paper/draw.py              # all that there are results for
python examples/paper/draw.py recall
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean

import runs
import tables
from recall import DENSE_SHARE, SHARP_DENSE_SHARE, router_scale_of

from fm_mlx.support.figures import new_figure, save

# nats per value asked for; who knows nothing but that it is a value has 4.8
LEARNED = 1.0
IMAGES = Path(__file__).parents[2] / "docs" / "images"
COLOURS = {
    "fm": "#0072b2",
    "fm_one_row": "#1a1a1a",
    "fm_convolved": "#56b4e9",
    "fm_balanced": "#999999",
    "llama": "#d55e00",
    "mamba2": "#009e73",
    "gated_delta": "#cc79a7",
}
MARKS = {
    "fm": "o",
    "fm_one_row": "P",
    "fm_convolved": "D",
    "llama": "s",
    "mamba2": "^",
    "gated_delta": "v",
}

STYLES_BY_K = {"2": ("o", "#08306b"), "4": ("D", "#2171b5"), "8": ("^", "#6baed6")}


def style(arm: str) -> dict[str, str]:
    return {"color": COLOURS[arm], "marker": MARKS[arm], "label": tables.NAMES[arm]}


def named(axes, values, base: int = 2, form: str = "{:,}") -> None:
    """A logarithmic axis with ticks at the values alone."""
    axes.set_xscale("log", base=base)
    axes.set_xticks(values, [form.format(value) for value in values])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def rates() -> None:
    """Left the loss by learning rate, right the best by context with bars of one deviation."""
    figure = new_figure(9, 3.8)
    left, right = figure.subplots(1, 2)
    seen = set()
    for arm in tables.measured_arms():
        first = [
            (float(line["learning rate"]), float(line["nats at 256"]))
            for line in runs.lines_of("rates")
            if line["arm"] == arm and line["seed"] == "0"
        ]
        seen |= {rate for rate, _ in first}
        left.plot(*zip(*sorted(first), strict=True), **style(arm))
        lines = tables.seeds_of(arm)
        means, bars = zip(
            *(tables.mean_and_deviation(lines, f"nats at {c}") for c in tables.CONTEXTS),
            strict=True,
        )
        right.errorbar(tables.CONTEXTS, means, bars, capsize=4, **style(arm))
    named(left, sorted(seen), form="{:g}")
    named(right, tables.CONTEXTS)
    left.set(
        title="one seed, windows of 256", xlabel="learning rate", ylabel="held-out nats per token"
    )
    right.set(
        title="at the best rate",
        xlabel="length of the windows, tokens (trained at 256)",
        ylabel="held-out nats per token",
    )
    right.legend()
    save(figure, IMAGES / "paper-rates.png")


def rows() -> None:
    """Loss by m at k = 2, by k at m = 32, by tau, and of dense memories by m."""
    figure = new_figure(10, 3.6)
    panels = figure.subplots(1, 3, sharey=True)
    lines = [
        (line["arm"], *tables.shape_of(line), float(line["nats at 256"]))
        for line in runs.lines_of("rows")
    ]

    def drawn(axes, points, **how) -> list[float]:
        axes.plot(*zip(*sorted(points), strict=True), **how)
        return [x for x, _ in points]

    by_rows = [(m, loss) for arm, m, k, tau, loss in lines if arm == "fm" and (k, tau) == (2, 1)]
    dense = [(m, loss) for arm, m, k, tau, loss in lines if arm == "fm" and m == k and tau == 1]
    short = [(m, loss) for arm, m, *_, loss in lines if arm == "fm_convolved"]
    seen = drawn(panels[0], by_rows, color=COLOURS["fm"], marker="o", label="k = 2")
    drawn(panels[0], dense, color="black", marker="x", ls="--", label="dense, k = m")
    if short:
        drawn(panels[0], short, color=COLOURS["fm_convolved"], marker="D", label="k = 2, convolved")
    named(panels[0], sorted({*seen, *(m for m, _ in dense)}), form="{:g}")
    panels[0].legend(fontsize="small")
    panels[0].set(xlabel="rows m", ylabel="held-out nats per token")
    by_active = [(k, loss) for arm, m, k, tau, loss in lines if (arm, m, tau) == ("fm", 32, 1)]
    named(panels[1], drawn(panels[1], by_active, color=COLOURS["fm"], marker="o"), form="{:g}")
    panels[1].set(xlabel="active rows k of m = 32")
    by_tau = [(tau, loss) for arm, m, k, tau, loss in lines if (arm, m, k) == ("fm", 32, 2)]
    named(panels[2], drawn(panels[2], by_tau, color=COLOURS["fm"], marker="o"), form="{:g}")
    panels[2].set(xlabel="temperature tau (m = 32, k = 2)")
    save(figure, IMAGES / "paper-rows.png")


def by_rows(lines: list[dict[str, str]], column: str) -> tuple[list[int], list[float]]:
    """A column against m."""
    return [int(line["m"]) for line in lines], [float(line[column]) for line in lines]


def recall() -> None:
    """The share recalled by m, a line for each k, beside the other arms that learned the task."""
    lines = runs.lines_of("recall")
    figure = new_figure(10, 3.8)
    settings = ("64:16", "256:64", "1024:120")
    panels = figure.subplots(1, len(settings), sharey=True)
    convolved = [line for line in lines if line["arm"] == "fm_convolved"]
    sharp = [
        line
        for line in convolved
        if float(line["router scale"]) == router_scale_of(int(line["m"]))
        and float(line["dense share"]) == SHARP_DENSE_SHARE
    ]
    plain = [
        line
        for line in convolved
        if float(line["router scale"]) == 1 and float(line["dense share"]) == DENSE_SHARE
    ]
    papers = [line for line in lines if line["arm"] == "fm" and float(line["router scale"]) == 1]
    rows = sorted({int(line["m"]) for line in convolved})
    for axes, setting in zip(panels, settings, strict=True):
        column = f"recalled of {setting}"
        for k, (mark, colour) in STYLES_BY_K.items():
            of_k = [line for line in sharp if line["k"] == k]
            if of_k:
                label = f"FM, convolved, sharp routers, k = {k}"
                axes.plot(*by_rows(of_k, column), mark, color=colour, label=label)
                own = sorted({line["m"] for line in of_k}, key=int)
                means = [mean(float(line[column]) for line in of_k if line["m"] == m) for m in own]
                axes.plot([int(m) for m in own], means, color=colour)
        axes.plot(
            *by_rows(plain, column), ".", color="0.6", label="the same, routers as the paper's"
        )
        for arm, dashes in (("llama", "--"), ("gated_delta", "-."), ("mamba2", ":")):
            shares = [
                float(line[column])
                for line in lines
                if line["arm"] == arm and float(line["last loss"]) < LEARNED
            ]
            if shares:
                axes.axhline(max(shares), ls=dashes, color=COLOURS[arm], label=tables.NAMES[arm])
        axes.plot(*by_rows(papers, column), "x", color="black", label="FM of the paper")
        named(axes, rows)
        tokens, pairs = setting.split(":")
        axes.set(title=f"{pairs} pairs in {int(tokens):,} tokens", ylim=(-0.02, 1.02))
    panels[0].set_ylabel("share of values recalled")
    figure.supxlabel("rows m")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside right center", fontsize="small"
    )
    save(figure, IMAGES / "paper-recall.png")


def generation() -> None:
    """Time of a token, bytes of the cache and time to read, against the context."""
    lines = runs.lines_of("generation")
    figure = new_figure(10, 3.6)
    panels = figure.subplots(1, 3)
    for arm in ("fm", "llama", "mamba2"):
        own = [line for line in lines if line["arm"] == arm]
        contexts = [int(line["context"]) for line in own]
        panels[0].plot(contexts, [float(line["ms a token"]) for line in own], **style(arm))
        panels[1].plot(contexts, [int(line["cache bytes"]) / 1e6 for line in own], **style(arm))
        read = [
            (int(x["context"]), float(x["seconds to read"])) for x in own if x["seconds to read"]
        ]
        panels[2].plot(*zip(*read, strict=True), **style(arm))
    ticks = [2**power for power in (9, 12, 15, 18, 20)]
    names = ["512", "4k", "32k", "256k", "1M"]
    for axes, title in zip(
        panels, ("ms to generate a token", "cache, MB", "seconds to read"), strict=True
    ):
        named(axes, ticks)
        axes.set_xticks(ticks, names)
        axes.set(yscale="log", title=title)
    panels[0].legend()
    figure.supxlabel("context, tokens")
    save(figure, IMAGES / "paper-generation.png")


FIGURES = {"rates": rates, "rows": rows, "recall": recall, "generation": generation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figure", nargs="*", choices=[[], *FIGURES], default=[])
    for name in parser.parse_args().figure or FIGURES:
        if runs.path_of(name).exists():
            FIGURES[name]()


if __name__ == "__main__":
    main()
