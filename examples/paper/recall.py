"""Recall against rows: multi-query associative recall (MQAR) with m from 16 to 4,096.

    python examples/paper/recall.py

Does recall grow with the rows m while a token still touches only k of them? Models of two layers
and 64 columns learn the task of `fm_mlx.evaluation.recall` from nothing, and a line of
results/recall.csv says how many values they recall. Runs whose line is there are skipped.

Beside the paper's FM stand FM behind a short convolution, which mamba2 and gated delta have too,
and FM that is trained dense at first: options of the training, not of the paper.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import runs

from fm_mlx.evaluation import arms, recall
from fm_mlx.support.allocator import keep_freed_memory

VOCAB_SIZE, HIDDEN, LAYERS = 256, 64, 2
TRAINED = [recall.Setting(32, 8)]
TESTED = [
    recall.Setting(64, 4),
    recall.Setting(64, 16),
    recall.Setting(128, 32),
    recall.Setting(256, 64),
    recall.Setting(512, 120),
    recall.Setting(1024, 120),
]
STEPS, TOKENS = 2400, 1024
DENSE_SHARE = 0.4
RATES = (1e-2, 3e-3)


def planned() -> Iterator[dict[str, Any]]:
    """What each run is given by, the ones that tell most first."""

    def fm(arm: str, m: int, k: int, share: float, rate: float = 1e-2) -> dict[str, Any]:
        return {"arm": arm, "m": m, "k": k, "dense share": share, "learning rate": rate, "seed": 0}

    yield fm("fm_convolved", 64, 2, DENSE_SHARE)
    yield fm("fm", 64, 2, 0.0)
    for arm in ("llama", "gated_delta", "mamba2"):
        yield fm(arm, 0, 0, 0.0, RATES[0])
    for m in (16, 256):
        yield fm("fm_convolved", m, 2, DENSE_SHARE)
    yield fm("fm", 64, 2, DENSE_SHARE)
    yield fm("fm_convolved", 64, 2, 0.0)
    yield fm("fm_convolved", 64, 8, DENSE_SHARE)
    yield fm("fm_convolved", 1024, 2, DENSE_SHARE)
    for arm in ("llama", "gated_delta", "mamba2"):
        yield fm(arm, 0, 0, 0.0, RATES[1])
    for m in (256, 16, 64, 1024):
        for k in (8, 4, 2):
            if (m, k) not in ((16, 2), (256, 2), (64, 2), (64, 8), (1024, 2)):
                yield fm("fm_convolved", m, k, DENSE_SHARE)
    for k in (2, 8, 4):
        yield fm("fm_convolved", 4096, k, DENSE_SHARE)


def learned(run: dict[str, Any]) -> dict[str, Any]:
    """Train a model, and count what it recalls: a line of the table."""
    rows = {}
    if run["m"]:
        rows = dict(num_memory_states=run["m"], num_active_states=run["k"])
    model = arms.build(run["arm"], VOCAB_SIZE, HIDDEN, LAYERS, run["seed"], **rows)
    training = recall.Training(
        TRAINED, STEPS, TOKENS, run["learning rate"], VOCAB_SIZE, run["seed"], run["dense share"]
    )
    started = time.perf_counter()
    losses = [loss for _, loss in recall.train(model, training)]
    seconds = time.perf_counter() - started
    shares = {
        f"recalled of {setting}": round(recall.accuracy(model, setting, VOCAB_SIZE, 32), 4)
        for setting in TESTED
    }
    last = losses[-STEPS // 20 :]
    return run | {
        "steps": STEPS,
        "last loss": round(sum(last) / len(last), 4),
        **shares,
        "seconds": round(seconds),
    }


def main() -> None:
    keep_freed_memory()
    for run in planned():
        if not runs.is_done("recall", run):
            runs.append("recall", learned(run))


if __name__ == "__main__":
    main()
