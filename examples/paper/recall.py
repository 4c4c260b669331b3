"""Recall against rows: multi-query associative recall (MQAR) with m from 16 to 4,096.

    python examples/paper/recall.py

Does recall grow with the rows m while a token still touches only k of them? Models of two layers
and 64 columns learn the task of `fm_mlx.evaluation.recall` from nothing, and a line of
results/recall.csv says how many values they recall. Runs whose line is there are skipped.

Beside the paper's FM stand FM behind a short convolution, which mamba2 and gated delta have too,
FM that begins with sharper routers, FM that is trained dense at first, and FM that chooses its rows
by product keys: options that are not the paper's.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from typing import Any

import runs

from fm_mlx.evaluation import arms, recall
from fm_mlx.support.allocator import keep_freed_memory

VOCAB_SIZE, HIDDEN, LAYERS = 256, 64, 2
# the kinds of sequences that a model learns from, in turns, and the tokens of a step
SHORT, LONG = "32:8", "32:8 64:16 128:32 256:64"
TOKENS = {SHORT: 1024, LONG: 2048}
TESTED = "64:4 64:16 128:32 256:64 512:120 1024:120"
STEPS = 2400
RATES = (1e-2, 3e-3)
# With routers as the paper's: the share of the steps with all rows active, shorter ones, and seed,
# m and k of runs that say how much is chance.
DENSE_SHARE = 0.4
SHORTER_DENSE_SHARES = (0.1, 0.2)
FURTHER_SEEDS = [(1, 256, 2), (1, 256, 8), (1, 256, 4), (1, 64, 2), (1, 64, 8)]
# With sharper routers: the scale at 64 rows, others at 64 rows, and the share of the steps.
ROUTER_SCALE = 4.0
OTHER_ROUTER_SCALES = (1.0, 2.0, 8.0)
SHARP_DENSE_SHARE = 0.2
ROWS = (16, 64, 256, 1024, 4096)
SEEDS = (0, 1, 2)


def router_scale_of(rows: int) -> float:
    """The scale with which a new router is as decided about any number of rows as about 64.

    The logits of a new router have one deviation s for all rows and tokens. The largest of m of
    them stands s sqrt(2 ln m) above the mean, so that s has to grow with sqrt(ln m).
    """
    return round(ROUTER_SCALE * math.sqrt(math.log(rows) / math.log(64)), 2)


def planned() -> Iterator[dict[str, Any]]:
    """What each run is given by, the ones that tell most first."""

    def run(
        arm: str,
        m: int,
        k: int,
        share: float,
        rate: float = RATES[0],
        on: str = SHORT,
        seed: int = 0,
        scale: float = 1.0,
    ) -> dict[str, Any]:
        return {
            "arm": arm,
            "m": m,
            "k": k,
            "dense share": share,
            "router scale": scale if m else "",
            "learning rate": rate,
            "seed": seed,
            "trained on": on,
        }

    def rivals(rate: float):
        for arm in ("mamba2", "gated_delta", "llama"):
            yield run(arm, 0, 0, 0.0, rate)
        # a transformer has to have seen the positions that it is asked for
        yield run("llama", 0, 0, 0.0, rate, LONG)

    yield from rivals(RATES[0])
    yield run("fm", 64, 2, 0.0)
    yield run("fm", 64, 2, DENSE_SHARE)
    yield run("fm_convolved", 64, 2, 0.0)
    yield run("fm_product", 64, 2, 0.0)
    for share in SHORTER_DENSE_SHARES:
        yield run("fm_convolved", 256, 2, share)
    yield from rivals(RATES[1])
    yield run("fm_product", 64, 2, DENSE_SHARE)
    for m, k in itertools.product((16, 64, 256), (2, 8, 4)):
        yield run("fm_convolved", m, k, DENSE_SHARE)
    for seed, m, k in FURTHER_SEEDS:
        yield run("fm_convolved", m, k, DENSE_SHARE, seed=seed)
    yield run("fm_convolved", 1024, 2, DENSE_SHARE)
    # a step on all 4,096 rows takes three seconds
    yield run("fm_convolved", 4096, 2, DENSE_SHARE)

    def sharp(m: int, k: int, seed: int = 0, share: float = SHARP_DENSE_SHARE, arm="fm_convolved"):
        return run(arm, m, k, share, seed=seed, scale=router_scale_of(m))

    for seed, m in itertools.product(SEEDS, ROWS):
        if seed == SEEDS[0] or m < ROWS[-1]:  # with the most rows a training takes an hour
            yield sharp(m, 2, seed)
    yield sharp(64, 2, 1, share=0.0)
    yield sharp(64, 2, 1, arm="fm")
    for scale in OTHER_ROUTER_SCALES:
        yield run("fm_convolved", 64, 2, SHARP_DENSE_SHARE, seed=1, scale=scale)
    for m in (64, 256, 1024):
        yield sharp(m, 2, 1, arm="fm_product")
    for k, m in itertools.product((8, 4), ROWS):
        yield sharp(m, k)


def settings(names: str) -> list[recall.Setting]:
    """The kinds of sequences that are named as tokens:pairs."""
    return [recall.Setting(*map(int, name.split(":"))) for name in names.split()]


def learned(run: dict[str, Any]) -> dict[str, Any]:
    """Train a model, and count what it recalls: a line of the table."""
    rows = {}
    if run["m"]:
        rows = dict(
            num_memory_states=run["m"],
            num_active_states=run["k"],
            router_scale=run["router scale"],
        )
    model = arms.build(run["arm"], VOCAB_SIZE, HIDDEN, LAYERS, run["seed"], **rows)
    training = recall.Training(
        settings(run["trained on"]),
        STEPS,
        TOKENS[run["trained on"]],
        run["learning rate"],
        VOCAB_SIZE,
        run["seed"],
        run["dense share"],
    )
    started = time.perf_counter()
    losses = [loss for _, loss in recall.train(model, training)]
    seconds = time.perf_counter() - started
    shares = {
        f"recalled of {setting}": round(recall.accuracy(model, setting, VOCAB_SIZE, 32), 4)
        for setting in settings(TESTED)
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
