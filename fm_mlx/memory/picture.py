"""A picture of what is left of what was read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fm_mlx.memory.left import parts_left, texts_left
from fm_mlx.memory.memory import Memory
from fm_mlx.support.figures import new_figure, save


def draw(memory: Memory, path: Path) -> None:
    """Draw, for each layer, bars of what its rows are made of.

    A memory of several texts is drawn by texts, one of a single text by the tokens between its
    snapshots; the lighter the later. The rows of a layer stand in the order of what is left of
    the earliest in them.

    Raises:
        ValueError: matplotlib is missing, or cannot write such a file.
    """
    if len(memory.texts) > 1:
        names, parts = [text.name for text in memory.texts], texts_left(memory)
    else:
        parts = parts_left(memory)
        names = [f"{part.first:,} to {part.last:,}" for part in parts[1:]]
    shares = np.stack([part.share for part in parts])  # (parts, layers, m)
    labels = ["before", *names]
    layers, rows = shares.shape[1:]
    columns = min(3, layers)
    lines = -(-layers // columns)
    figure = new_figure(3.6 * columns + 1.6, 2.4 * lines + 0.6)
    from matplotlib import colormaps

    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    colours = colormaps["viridis"](np.linspace(0, 1, len(parts)))
    for layer, axes in enumerate(grid.flat):
        if layer >= layers:
            axes.set_axis_off()
            continue
        age = np.arange(len(parts)) @ shares[:, layer]
        order, bottom = np.argsort(age), np.zeros(rows)
        for share, colour, label in zip(shares[:, layer], colours, labels, strict=True):
            axes.bar(range(rows), share[order], 1.0, bottom, color=colour, label=label)
            bottom = bottom + share[order]
        axes.set(title=f"layer {layer}", ylim=(0, 1), xlim=(-0.5, rows - 0.5))
    handles, shown = grid.flat[0].get_legend_handles_labels()
    step = -(-len(shown) // 16)
    pick = sorted({*range(0, len(shown), step), len(shown) - 1})
    figure.legend(
        [handles[i] for i in pick],
        [shown[i] for i in pick],
        loc="outside right upper",
        title="text" if len(memory.texts) > 1 else "tokens",
        fontsize="small",
    )
    figure.supxlabel("rows of the memory, those that keep the oldest first")
    figure.supylabel("share of the row")
    save(figure, path)
