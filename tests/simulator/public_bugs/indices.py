"""Indices that are right for the first of a batch, for full cells, or inside a picture."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from planted.cases import Case, mistake, normal

from .bug import Bug

F32, I32 = mx.float32, mx.int32


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _lstm(x: np.ndarray, h: np.ndarray, cell: np.ndarray, step: np.ndarray) -> np.ndarray:
    i, f, g, _ = np.split(h + x[:, step], 4, axis=1)
    return _sigmoid(f) * cell + _sigmoid(i) * np.tanh(g)


def _sampled(x: np.ndarray, at: np.ndarray) -> np.ndarray:
    padded = np.pad(x, 2)
    corner = np.floor(at).astype(int)
    r, c = (at - corner).T
    i, j = corner.T + 2
    upper = padded[i, j] * (1 - c) + padded[i, j + 1] * c
    lower = padded[i + 1, j] * (1 - c) + padded[i + 1, j + 1] * c
    return upper * (1 - r) + lower * r


def _tiles(atoms: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    rows = []
    for cell, count in enumerate(atoms):
        blocks = -(-count // 4)
        rows += [(cell, 8 * i + j) for i in range(blocks) for j in range(i, blocks)]
    return np.array(rows)


_ATOMS = np.array([5, 1, 9, 4, 1])
_BLOCKS = -(-_ATOMS // 4)
_TILES = _BLOCKS * (_BLOCKS + 1) // 2
# room for the tiles of cells that have a pair of atoms, as the public code reserves it
_TILES_OF_PAIRS = np.where(_ATOMS > 1, _TILES, 0)


def _offsets(tiles: np.ndarray) -> mx.array:
    return mx.array(np.cumsum(tiles) - tiles).astype(I32)


BATCH_COUNTED_TWICE = Bug(
    "ml-explore/mlx-examples",
    ("encodec/encodec.py:14-62",),
    "With a batch of one it is right. From the second row on it reads the gates of other rows and "
    "time steps, then behind the buffers, and stores cells there; mlx-audio has a copy.",
    Case(
        "lstm_step",
        "a time step of an LSTM for a batch",
        """
        uint b = thread_position_in_grid.x, j = thread_position_in_grid.y;
        uint hidden = cell_shape[1], gates = 4 * hidden;
        uint own = b * hidden + j;
        uint at = b * gates + j, in = (b * x_shape[1] + step) * gates + j;
        float i = sigmoid(h[at] + x[in]);
        float f = sigmoid(h[at + hidden] + x[in + hidden]);
        float g = metal::precise::tanh(h[at + 2 * hidden] + x[in + 2 * hidden]);
        new_cell[own] = f * cell[own] + i * g;
        """,
        {
            "x": normal(3, 5, 64),
            "h": normal(3, 64, seed=1),
            "cell": normal(3, 16, seed=2),
            "step": mx.array(2),
        },
        {"new_cell": ((3, 16), F32)},
        (3, 16, 1),
        (3, 16, 1),
        _lstm,
        header="""
        float sigmoid(float x) { return 1 / (1 + metal::precise::exp(-x)); }
        """,
        mistakes=(
            mistake(
                "cells at the indices of gates",
                "out-of-bounds",
                {
                    "uint own = b * hidden + j;": "uint own = b * gates + j;",
                    "in = (b * x_shape[1] + step) * gates + j;": (
                        "in = (b * x_shape[1] + step) * gates + b * gates + j;"
                    ),
                    "new_cell[own] = f * cell[own] + i * g;": (
                        "new_cell[own] = f * cell[own] + i * g;  // <- here"
                    ),
                },
            ),
        ),
    ),
)

LOADED_BEFORE_TESTED = Bug(
    "ml-explore/mlx",
    ("docs/src/dev/custom_metal_kernels.rst, grid_sample",),
    "What lies outside is loaded first and replaced by zero afterwards. The number is right "
    "wherever the load is let through; before the first row of a buffer it need not be.",
    Case(
        "sample_bilinear",
        "four neighbours of a place between pixels, zero outside",
        """
        uint i = thread_position_in_grid.x;
        float2 p = float2(at[2 * i], at[2 * i + 1]), corner = metal::floor(p), part = p - corner;
        float sum = 0;
        for (int k = 0; k < 4; ++k) {
            int row = int(corner.x) + k / 2, column = int(corner.y) + k % 2;
            bool inside = row >= 0 && row < x_shape[0] && column >= 0 && column < x_shape[1];
            float pixel = 0;
            if (inside) pixel = x[row * x_shape[1] + column];
            sum += pixel * (k / 2 ? part.x : 1 - part.x) * (k % 2 ? part.y : 1 - part.y);
        }
        y[i] = sum;
        """,
        {"x": normal(6, 8), "at": mx.array(np.linspace(-0.9, 5.9, 64).reshape(32, 2)).astype(F32)},
        {"y": ((32,), F32)},
        (32, 1, 1),
        (32, 1, 1),
        _sampled,
        mistakes=(
            mistake(
                "a pixel that is loaded before its place is tested",
                "out-of-bounds",
                {
                    "float pixel = 0; if (inside) pixel = x[row * x_shape[1] + column];": """
            float pixel = x[row * x_shape[1] + column];  // <- here
            pixel = inside ? pixel : 0;"""
                },
            ),
        ),
    ),
)

NO_ROOM_FOR_SINGLE_ATOMS = Bug(
    "appautomaton/mlx-atomistic",
    ("src/mlx_atomistic/neighbors.py:1950",),
    "A cell of one atom has no pair, so no tile is reserved for it, but the kernel stores one: "
    "over the first tile of the next cell, or behind the last. Pairs of atoms get lost.",
    Case(
        "tiles_of_cells",
        "pairs of blocks of four atoms in a cell, at the place that a prefix sum reserves",
        """
        uint cell = thread_position_in_grid.x;
        int place = offsets[cell], blocks = (atoms[cell] + 3) / 4;
        for (int i = 0; i < blocks; ++i) {
            for (int j = i; j < blocks; ++j) {
                tiles[2 * place] = cell;
                tiles[2 * place + 1] = 8 * i + j;
                ++place;
            }
        }
        """,
        {"atoms": mx.array(_ATOMS).astype(I32), "offsets": _offsets(_TILES)},
        {"tiles": ((int(_TILES.sum()), 2), I32)},
        (5, 1, 1),
        (5, 1, 1),
        _tiles,
        mistakes=(
            mistake(
                "no room for the tile of a cell with one atom",
                "race-write-after-write out-of-bounds",
                {"tiles[2 * place] = cell;": "tiles[2 * place] = cell;  // <- here"},
                inputs={
                    "atoms": mx.array(_ATOMS).astype(I32),
                    "offsets": _offsets(_TILES_OF_PAIRS),
                },
                outputs={"tiles": ((int(_TILES_OF_PAIRS.sum()), 2), I32)},
            ),
        ),
    ),
)
