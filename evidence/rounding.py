"""What rounding a memory to 8 bits costs: the drift from float32 over 100,000 tokens after it.

    python evidence/rounding.py --text bible.txt

A memory of the first half of the text is rounded; then both read on. The second run is rounded
again at every piece, as if it were saved and loaded there.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from figures import record

import fm_mlx
from fm_mlx.memory import Memory
from fm_mlx.memory.reading import PIECE
from fm_mlx.memory.states import put_states, states_of

TOKENS = 100_000
SHOWN = (1, 2, 4, 8, 16, 32, 48)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 text")
    args = parser.parse_args()
    model, tokenizer = fm_mlx.load()
    text = args.text.read_text(encoding="utf-8")
    memory = fm_mlx.remember(model, tokenizer, text[: len(text) // 2])
    tokens = tokenizer.encode(text[len(text) // 2 :][: 8 * TOKENS])[: TOKENS + 1]
    exact, losses = read_on(model, memory.state, tokens)
    found: dict[str, Any] = {"tokens": TOKENS, "loss in float32": round(float(losses.mean()), 6)}
    runs = {"rounded once": False, "rounded at every 2,048 tokens": True}
    for name, again in runs.items():
        states, own = read_on(model, rounded(model, memory.state), tokens, again)
        drift = [distance(a, b) for a, b in zip(states, exact, strict=True)]
        found[name] = {
            "loss": round(float(own.mean()), 6),
            "difference of losses, nats/token": float(f"{own.mean() - losses.mean():.2e}"),
            "largest difference of a piece's": float(f"{abs(own - losses).max():.2e}"),
            "distance of the states, of their length": {
                f"after {piece * PIECE:,} tokens": float(f"{drift[piece - 1]:.2e}")
                for piece in SHOWN
            },
        }
    record("rounding", found)


def read_on(
    model: fm_mlx.Model, state: mx.array, tokens: list[int], again: bool = False
) -> tuple[list[np.ndarray], np.ndarray]:
    """The states after each piece, and the mean losses of the pieces."""
    cache = model.make_cache()
    put_states(cache, state, model.args.num_active_states)
    states, losses = [], []
    for start in range(0, TOKENS - PIECE + 1, PIECE):
        piece = mx.array(tokens[start : start + PIECE + 1])[None]
        logits = model(piece[:, :-1], cache=cache)
        losses.append(nn.losses.cross_entropy(logits, piece[:, 1:], reduction="mean").item())
        states.append(np.array(states_of(cache)))
        if again:
            put_states(cache, rounded(model, states_of(cache)), model.args.num_active_states)
    return states, np.array(losses)


def rounded(model: fm_mlx.Model, state: mx.array) -> mx.array:
    """A state that was saved in 8 bits and loaded."""
    memory = Memory.empty(model)
    memory.state = state
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rounded.memory"
        memory.save(path, bits=8)
        return Memory.load(path).state


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


if __name__ == "__main__":
    main()
