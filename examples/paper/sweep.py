"""Short trainings that compare models: learning rates, rows, active rows, temperatures.

    python examples/paper/sweep.py rates   # FM, llama, mamba2: three rates; more seeds of the best
    python examples/paper/sweep.py rows    # m at fixed k, k at fixed m, tau

Each run trains a model of 1.37 million parameters for 400 steps of 8 x 256 tokens of the King James
Bible and appends a line to results/NAME.csv: held-out nats per token at 256 tokens, as trained, and
at longer contexts. Runs whose line is there are skipped, so that a sweep goes on where it was cut.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import runs
from balance import balanced
from mlx.utils import tree_flatten
from tokenizers import Tokenizer

from fm_mlx.evaluation.arms import convolve
from fm_mlx.inspection.observe import observe
from fm_mlx.support.allocator import keep_freed_memory

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import pretrain  # noqa: E402  (the examples beside this folder)
import texts  # noqa: E402

STEPS, WARMUP, BATCH, CONTEXT = 400, 40, 8, 256
CONTEXTS = (256, 1024, 4096, 16384)

RATES = (3e-3, 6e-3, 1.2e-2)
SEEDS = (0, 1, 2)
BALANCE = 0.01

# the packaged model's shape with more rows; what a sweep varies it says
FM = pretrain.CONFIGS["fm"] | dict(num_memory_states=32, num_active_states=8)
CONFIGS = pretrain.CONFIGS | {"fm": FM}


def run(arm: str, changes: dict[str, Any], rate: float, seed: int = SEEDS[0]) -> dict[str, Any]:
    """What a training is given by; the changes are to the config of its arm."""
    shown = json.dumps(changes, sort_keys=True)
    return {"arm": arm, "changes": shown, "learning rate": rate, "seed": seed}


def rates() -> Iterator[dict[str, Any]]:
    """The learning rate of each arm, chosen by the first seed; then more seeds of the best."""
    one_row = dict(num_memory_states=1, num_active_states=1)
    arms = (
        ("mamba2", {}),
        ("fm_one_row", one_row),
        ("fm", {"num_active_states": 2}),
        ("llama", {}),
    )
    for (arm, changes), rate in itertools.product(arms, RATES):
        yield run(arm, changes, rate)
    for seed, (arm, changes) in itertools.product(SEEDS[1:], arms):
        yield run(arm, changes, best_rate(arm), seed)


def rows() -> Iterator[dict[str, Any]]:
    """m at k = 2, k at m = 32, tau, and dense memories, at one learning rate."""
    shapes = [
        *(dict(num_memory_states=m, num_active_states=2) for m in (4, 8, 16)),
        *(dict(num_memory_states=m, num_active_states=m) for m in (4, 1)),
        dict(num_active_states=1),
        dict(num_memory_states=2, num_active_states=2),
        *(dict(num_memory_states=m, num_active_states=2) for m in (64, 512)),
        *(dict(num_active_states=k) for k in (8, 32)),
        *(dict(num_active_states=2, affinity_temperature=tau) for tau in (0.25, 2.0)),
        dict(num_memory_states=32, num_active_states=2),
    ]
    for number, shape in enumerate(shapes):
        yield run("fm", shape, 6e-3)
        if number == 6:
            both = dict(num_memory_states=32, num_active_states=2)
            yield run("fm_convolved", both, 6e-3)
            yield run("fm_balanced", both, 6e-3)
            yield run("fm_convolved", dict(num_memory_states=4, num_active_states=2), 6e-3)


SWEEPS = {"rates": rates, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", choices=SWEEPS)
    args = parser.parse_args()
    keep_freed_memory()
    tokens, held_out = read_tokens()
    for planned in SWEEPS[args.sweep]():
        if not runs.is_done(args.sweep, planned):
            runs.append(args.sweep, trained(planned, tokens, held_out))


def read_tokens() -> tuple[np.ndarray, np.ndarray]:
    """Tokens to train on and held-out tokens, by a tokenizer made of the text to train on."""
    both = texts.training_and_held_out(names=("bible",))["bible"]
    with tempfile.TemporaryDirectory() as folder:
        pretrain.train_tokenizer(both[0], Path(folder))
        tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    training, held_out = (np.array(tokenizer.encode(text).ids, np.int32) for text in both)
    # the same tokens at every context
    longest = CONTEXTS[-1]
    return training, held_out[: (len(held_out) - 1) // longest * longest + 1]


def trained(planned: dict[str, Any], tokens: np.ndarray, held_out: np.ndarray) -> dict[str, Any]:
    """Train, and measure the held-out loss: a line of the table."""
    seed = planned["seed"]
    model = built(planned["arm"], json.loads(planned["changes"]), seed)
    parameters = sum(weight.size for _, weight in tree_flatten(model.parameters()))
    schedule = pretrain.schedule(planned["learning rate"], WARMUP, STEPS)
    optimizer = optim.AdamW(schedule, betas=[0.9, 0.95], weight_decay=0.1)
    optimizer.init(model.trainable_parameters())
    state = [model.state, optimizer.state]

    loss_fn = pretrain.loss_fn
    if planned["arm"] == "fm_balanced":
        loss_fn = balanced(model, BALANCE, loss_fn)
    update = pretrain.compiled_step(model, optimizer, state, loss_fn)
    started = time.perf_counter()
    for step in range(STEPS):
        drawn = np.random.default_rng((seed, step))
        first = drawn.integers(0, len(tokens) - CONTEXT - 1, (BATCH, 1))
        mx.eval(update(mx.array(tokens[first + np.arange(CONTEXT + 1)])), state)
    seconds = time.perf_counter() - started
    losses = {
        f"nats at {context}": round(pretrain.held_out_nats(model, held_out, context), 4)
        for context in CONTEXTS
    }
    if planned["arm"].startswith("fm") and planned["arm"] != "fm_convolved":
        layers = observe(model, [held_out[:4096].tolist()]).layers
        losses["rows used"] = " ".join(f"{layer.rows_used:.1f}" for layer in layers)
    return planned | {"parameters": parameters, "seconds": round(seconds), **losses}


def best_rate(arm: str) -> float:
    """The learning rate at which the first seed of an arm has the lowest loss as trained."""
    lines = [
        line
        for line in runs.lines_of("rates")
        if line["arm"] == arm and line["seed"] == str(SEEDS[0])
    ]
    best = min(lines, key=lambda line: float(line[f"nats at {CONTEXTS[0]}"]))
    return float(best["learning rate"])


def built(arm: str, changes: dict[str, Any], seed: int) -> nn.Module:
    """A new model; "fm_convolved" has a short convolution before each memory of FM."""
    base = arm.partition("_")[0]
    model = pretrain.built(base, CONFIGS[base] | changes, seed)
    return convolve(model) if arm == "fm_convolved" else model


if __name__ == "__main__":
    main()
