"""Which threadgroups move which parts of a buffer, and the picture of it."""

from __future__ import annotations

import matplotlib.image
import numpy as np
import pytest
from launches import INDEX, launch

from fm_mlx.metal_kernels import simulator


def test_counts():
    source = "threadgroup float t[16]; " + INDEX + "t[i % 16] = x[i]; o[63 - i] = t[i % 16];"
    _, report = launch(source, group=16, maps=True)
    loads, stores = report.buffers["o"].map
    assert loads.sum() == 0
    # 64 floats in 256 columns: a float begins in every fourth
    assert [np.flatnonzero(row).tolist() for row in stores[:4]] == [
        list(range(192, 256, 4)),
        list(range(128, 192, 4)),
        list(range(64, 128, 4)),
        list(range(0, 64, 4)),
    ]
    assert stores.sum() == report.buffers["o"].stores.bytes == 256
    for name in ("x", "t"):
        buffer = report.buffers[name]
        assert buffer.map.sum() == buffer.loads.bytes + buffer.stores.bytes


def test_many_threadgroups_share_rows():
    _, report = launch(INDEX + "o[i] = x[i % 256];", threads=4096, count=4096, group=32, maps=True)
    stores = report.buffers["o"].map[1]
    assert stores.sum(axis=1).tolist() == [4096 * 4 // 64] * 64


def test_picture(tmp_path):
    _, report = launch(INDEX + "o[i] = x[63 - i];", group=16, maps=True)
    simulator.draw_traffic(report, tmp_path / "traffic.png")
    picture = matplotlib.image.imread(tmp_path / "traffic.png")
    assert picture.shape[0] > 300
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 20


def test_nothing_was_counted(tmp_path):
    _, report = launch(INDEX + "o[i] = x[i];")
    with pytest.raises(ValueError, match=r"launch inside of options\(maps=True\)"):
        simulator.draw_traffic(report, tmp_path / "traffic.png")
    assert not list(tmp_path.iterdir())
