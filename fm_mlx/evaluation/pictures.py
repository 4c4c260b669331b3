"""Pictures of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fm_mlx.evaluation.context import Measured, by_position
from fm_mlx.evaluation.needle import Cell
from fm_mlx.evaluation.recall import Setting
from fm_mlx.evaluation.wording import CANDIDATES
from fm_mlx.support.figures import new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_contexts(found: Sequence[Measured], path: Path) -> None:
    """Draw losses against the length of the windows, and against the position in them.

    Raises:
        ValueError: matplotlib is missing, or cannot write such a file.
    """
    figure = new_figure(9, 3.8)
    left, right = figure.subplots(1, 2, sharey=True)
    for measured in found:
        readings = measured.readings
        losses = [reading.bits_per_byte() for reading in readings]
        left.plot([reading.context for reading in readings], losses, "o-", label=measured.name)
        parts = by_position(readings)
        middles = [(first * last) ** 0.5 for first, last, _ in parts]
        right.plot(middles, [loss for _, _, loss in parts], ".-", label=measured.name)
    lengths = sorted({reading.context for measured in found for reading in measured.readings})
    powers = [4**power for power in range(32) if 4**power <= lengths[-1]]
    left.set(
        title="the same tokens, read in windows",
        xlabel="length of the windows, tokens",
        ylabel="loss, bits per byte",
    )
    right.set(title="by position in the window", xlabel="position, tokens")
    for axes, ticks in ((left, lengths), (right, powers)):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    right.legend()
    save(figure, path)


def draw_needles(found: Sequence[tuple[str, Sequence[Cell]]], path: Path) -> None:
    """Draw, for each model, maps over length and depth of what the needle gained.

    Args:
        found: the name of each model and what `needle.measure` found.
        path: where the picture goes.

    Raises:
        ValueError: matplotlib is missing, or cannot write such a file.
    """
    every = [cell for _, cells in found for cell in cells]
    lengths = sorted({cell.length for cell in every})
    depths = sorted({cell.depth for cell in every if cell.depth is not None})
    figure = new_figure(
        1.6 + 3 * max(2.2, 0.75 * len(lengths)), 0.9 + len(found) * max(1.6, 0.42 * len(depths))
    )
    grid = figure.subplots(len(found), 3, squeeze=False, sharex=True, sharey=True)
    maps = (
        ("nats gained on the others", "gain_on_others", log(CANDIDATES), "{:z.2f}"),
        (f"right value first of {CANDIDATES}", "first", 1, "{:.0%}"),
        ("decoded exactly", "exact", 1, "{:.0%}"),
    )
    for row, (name, cells) in zip(grid, found, strict=True):
        for axes, (_, measure, top, form) in zip(row, maps, strict=True):
            values = np.full((len(depths), len(lengths)), np.nan)
            for cell in cells:
                if cell.depth is not None:
                    place = depths.index(cell.depth), lengths.index(cell.length)
                    values[place] = getattr(cell, measure)
            _heat_map(axes, values, top, form)
        row[0].set_ylabel(name if len(found) > 1 else "")
    for axes, (title, *_) in zip(grid[0], maps, strict=True):
        axes.set_title(title, fontsize="medium")
    grid[-1, 0].set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    grid[0, 0].set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    figure.supxlabel("length of the hay, tokens", fontsize="medium")
    figure.supylabel("place of the needle in the hay", fontsize="medium")
    save(figure, path)


def draw_recall(found: Sequence[tuple[str, Sequence[tuple[Setting, float]]]], path: Path) -> None:
    """Draw, for each arm, the share of values recalled of each kind of sequence.

    Args:
        found: the name of each arm, and its share for each setting.
        path: where the picture goes.

    Raises:
        ValueError: matplotlib is missing, or cannot write such a file.
    """
    figure = new_figure(7, 3.8)
    axes = figure.subplots()
    for name, shares in found:
        axes.plot([str(setting) for setting, _ in shares], [share for _, share in shares], "o-")
        axes.lines[-1].set_label(name)
    axes.set(xlabel="tokens:pairs", ylabel="share of values recalled", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)


def _heat_map(axes: Axes, values: np.ndarray, top: float, form: str) -> None:
    """Values as colours from 0 (dark) to the top (light), each written in its cell."""
    axes.imshow(values, vmin=0, vmax=top, cmap="viridis", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        text: dict[str, Any] = {"color": "black" if value > 0.6 * top else "white"}
        axes.text(column, row, form.format(value), ha="center", va="center", **text)
