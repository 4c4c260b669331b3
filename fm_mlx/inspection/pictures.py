"""Pictures of what the layers do, as files; these need matplotlib."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fm_mlx.inspection.observe import Observation
from fm_mlx.support.figures import new_figure, save

# The colours of the page's lines.
_BLUE, _ORANGE = "#0b62a8", "#b4500a"


def draw(seen: Observation, folder: Path) -> list[Path]:
    """Draw ``affinities.png`` and ``rows.png``.

    Args:
        seen: what a model did with a prompt.
        folder: where the pictures go; it is there.

    Returns:
        The paths of the pictures.
    """
    drawn = []
    for name, picture in (("affinities", _affinities), ("rows", _rows)):
        drawn.append(folder / f"{name}.png")
        save(picture(seen), drawn[-1])
    return drawn


def _affinities(seen: Observation) -> Figure:
    """For each layer the affinity of each token to each row, on one scale of colours."""
    columns = 1 if len(seen.layers) == 1 else 2
    lines = -(-len(seen.layers) // columns)
    figure = new_figure(5.6 * columns, 2.5 * lines + 0.8)
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    most = max(float(use.affinity.max()) for use in seen.layers)
    rows = len(seen.layers[0].usage)
    extent = (seen.first_kept - 0.5, seen.tokens + 0.5, rows - 0.5, -0.5)
    colours = ScalarMappable(Normalize(0, most), "viridis_r")
    for number, axes in enumerate(grid.flat):
        if number >= len(seen.layers):
            axes.set_axis_off()
            continue
        use = seen.layers[number]
        axes.imshow(
            np.ma.masked_equal(use.affinity.T, 0),
            norm=colours.norm,
            cmap=colours.cmap,
            aspect="auto",
            interpolation="nearest",
            extent=extent,
        )
        axes.set_facecolor("#eceef0")
        axes.set_title(f"layer {number}: {use.rows_used:.1f} of {rows} rows used", fontsize=12)
    for axis in (grid[0, 0].xaxis, grid[0, 0].yaxis):  # all layers share them
        axis.set_major_locator(MaxNLocator(integer=True))
    figure.supxlabel("token of the prompt")
    figure.supylabel("row of the memory")
    figure.colorbar(colours, ax=grid, label="affinity (grey: not active)", aspect=40, pad=0.01)
    return figure


def _rows(seen: Observation) -> Figure:
    """Shares, half-lives and rates of all layers, over the whole prompt."""
    figure = new_figure(13, 4.2)
    shares, half_lives, rates = figure.subplots(1, 3)
    count, rows = len(seen.layers), len(seen.layers[0].usage)
    colours = colormaps["viridis"](np.linspace(0, 0.9, count))
    for number, (use, colour) in enumerate(zip(seen.layers, colours, strict=True)):
        share = np.sort(use.usage)[::-1]
        label = str(number) if number % max(1, count // 6) == 0 else None
        shares.plot(
            range(1, rows + 1), share, color=colour, label=label, marker="." if rows <= 64 else ""
        )
        half_life = use.half_life
        # neither 0 nor infinity has a place on a logarithmic axis
        finite = half_life[np.isfinite(half_life) & (half_life > 0)]
        spread = 0.5 * (np.arange(len(finite)) + 0.5) / max(1, len(finite)) - 0.25
        half_lives.plot(number + spread, np.sort(finite), ".", color=_BLUE, alpha=0.7)
        if np.isfinite(use.median_half_life) and use.median_half_life > 0:
            half_lives.hlines(use.median_half_life, number - 0.35, number + 0.35, color="black")
    shares.axhline(1 / rows, color="grey", linestyle="--", linewidth=1)
    shares.set(
        title=f"Use of the rows (dashed: 1/{rows})",
        xlabel="rows of a layer, the most used first",
        ylabel="share of the affinity",
    )
    shares.set_ylim(bottom=0)
    shares.xaxis.set_major_locator(MaxNLocator(integer=True))
    shares.legend(title="layer", fontsize="small", ncols=2)
    half_lives.set(
        title="Half-life of each row (line: median)",
        xlabel="layer",
        ylabel="tokens",
        yscale="log",
    )
    half_lives.axhline(
        seen.tokens, color="grey", linestyle="--", linewidth=1, label="length of the prompt"
    )
    half_lives.legend(fontsize="small")
    eta = [(use.update_rate, use.mean_update_rate) for use in seen.layers]
    mu = [(use.merge_rate, use.mean_merge_rate) for use in seen.layers]
    for name, rate, colour, marker, shift in (
        ("update rate η", eta, _BLUE, "o", -0.1),
        ("merge rate μ", mu, _ORANGE, "s", 0.1),
    ):
        kept, mean = zip(*rate, strict=True)
        low, high = np.array([np.quantile(rate, (0.1, 0.9)) for rate in kept]).T
        places = np.arange(count) + shift
        rates.vlines(places, low, high, color=colour, alpha=0.5, linewidth=3)
        rates.plot(places, mean, marker, color=colour, label=name)
    rates.set(
        title="Rates of the tokens",
        xlabel="layer",
        ylabel="mean, and 10% to 90% of the tokens shown",
        ylim=(0, 1.15),  # room for the legend
        yticks=np.linspace(0, 1, 6),
    )
    rates.legend(fontsize="small", loc="upper center", ncols=2)
    for axes in (half_lives, rates):
        axes.set_xticks(range(0, count, max(1, count // 12)))
        axes.set_xlim(-0.6, count - 0.4)
    return figure
