"""The simulator itself: what it finds, what it computes, what it counts."""

from __future__ import annotations

import pytest

from fm_mlx.metal_kernels import simulator


@pytest.fixture(autouse=True)
def able():
    if reason := simulator.unavailable():
        pytest.skip(reason)
