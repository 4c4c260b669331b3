"""The memory traffic of a launch as a picture."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from .report import Report


def draw_traffic(report: Report, path: str | os.PathLike[str]) -> None:
    """Draw which threadgroups of a launch loaded and stored which parts of every buffer.

    Needs matplotlib.

    Args:
        report: of a launch inside of ``options(maps=True)``.
        path: the picture to write; its suffix says which format.

    Raises:
        ValueError: if nothing was counted.
    """
    buffers = {
        name: buffer
        for name, buffer in report.buffers.items()
        if buffer.map is not None and buffer.size and buffer.map.any()
    }
    if not buffers:
        raise ValueError("there is no traffic in the report; launch inside of options(maps=True)")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1 + 1.6 * len(buffers)), layout="constrained")
    axes = figure.subplots(len(buffers), 2, squeeze=False)
    rows = min(report.threadgroups, 64)
    for (name, buffer), pair in zip(buffers.items(), axes, strict=True):
        assert buffer.map is not None
        most = max(int(buffer.map.max()), 1)
        for axis, counts, what in zip(pair, buffer.map, ("loaded", "stored"), strict=True):
            shown = np.ma.masked_equal(counts[:rows], 0)
            extent = (0, buffer.size, report.threadgroups, 0)
            image = axis.imshow(
                shown,
                cmap="viridis_r",  # dark is much, on a white ground
                aspect="auto",
                extent=extent,
                vmin=0,
                vmax=most,
                interpolation="nearest",
            )
            if not counts.any():
                axis.text(0.5, 0.5, "nothing", transform=axis.transAxes, ha="center", fontsize=8)
            axis.set_title(f"{name}, {what}", fontsize=9)
            axis.set_xlabel("byte", fontsize=8)
            axis.set_ylabel("threadgroup", fontsize=8)
            axis.tick_params(labelsize=8)
        figure.colorbar(image, ax=list(pair), label="bytes").ax.tick_params(labelsize=8)
    figure.suptitle(f"{report.name}: traffic by threadgroup", fontsize=10)
    figure.savefig(Path(path), dpi=120)
