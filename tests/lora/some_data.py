"""Examples to tune on, of random tokens."""

from __future__ import annotations

import numpy as np
from tiny import CONFIG

from fm_mlx.lora.data import Example


def some_examples(lengths, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    return [
        Example(rng.integers(3, CONFIG["vocab_size"], length).astype(np.int32))
        for length in lengths
    ]
