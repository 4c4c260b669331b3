"""Short trainings that compare models: learning rates, rows, active rows, temperatures.

    python examples/paper/sweep.py rates     # FM, llama and mamba2, four learning rates each
    python examples/paper/sweep.py rows      # m at fixed k, k at fixed m, tau

Each run trains a model of 1.37 million parameters for 400 steps of 8 x 256 tokens of the King James
Bible and appends a line to results/NAME.csv: held-out nats per token at 256 tokens, as trained, and
at longer contexts. Runs whose line is there are skipped, so that a sweep goes on where it was cut.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import llama, mamba2
from tokenizers import Tokenizer

import fm_mlx
from fm_mlx.loading import PRETRAINED
from fm_mlx.perf.bench import MAMBA2_CONFIG
from fm_mlx.support.allocator import keep_freed_memory

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import pretrain  # noqa: E402  (the example beside this folder)

STEPS, WARMUP, BATCH, CONTEXT = 400, 40, 8, 256
CONTEXTS = (256, 1024, 4096, 16384)

RATES = (1.5e-3, 3e-3, 6e-3, 1.2e-2)
SEEDS = (0, 1, 2)

# as many parameters as the others
MAMBA2 = MAMBA2_CONFIG | dict(
    num_hidden_layers=9, hidden_size=128, intermediate_size=256, num_heads=4, state_size=86
)
ARMS = {
    "fm": (fm_mlx.Model, fm_mlx.ModelArgs, pretrain.CONFIGS["fm"]),
    "llama": (llama.Model, llama.ModelArgs, pretrain.CONFIGS["llama"]),
    "mamba2": (mamba2.Model, mamba2.ModelArgs, MAMBA2),
}

Run = tuple[str, dict[str, Any], float, int]  # arm, changes to its config, learning rate, seed


def rates() -> Iterator[Run]:
    """The learning rate of each arm: first one seed of all, then two more."""
    arms = (
        *((("fm", {"num_active_states": k})) for k in (2, 8)),
        ("llama", {}),
        ("mamba2", {}),
    )
    for seed in SEEDS:
        for (arm, changes), rate in itertools.product(arms, RATES):
            yield arm, changes, rate, seed


def rows() -> Iterator[Run]:
    """m at k = 2 and 8, k at m = 32, and tau, at one learning rate."""
    shapes = [
        *(
            dict(num_memory_states=m, num_active_states=2)
            for m in (4, 8, 16, 32, 64, 128, 256, 512)
        ),
        *(dict(num_memory_states=32, num_active_states=k) for k in (1, 2, 4, 8, 16, 32)),
        *(
            dict(num_memory_states=32, num_active_states=8, affinity_temperature=tau)
            for tau in (0.1, 0.25, 0.5, 2.0)
        ),
        *(dict(num_memory_states=m, num_active_states=m) for m in (8, 16)),
    ]
    for seed in SEEDS:
        for rows, active, temperature in shapes:
            changes = dict(
                num_memory_states=rows, num_active_states=active, affinity_temperature=temperature
            )
            yield "fm", changes, 6e-3, seed


SWEEPS = {"rates": rates, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", choices=SWEEPS)
    args = parser.parse_args()
    keep_freed_memory()
    path = HERE / "results" / f"{args.sweep}.csv"
    path.parent.mkdir(exist_ok=True)
    tokens, held_out = read_tokens()
    done = known_runs(path)
    for run in SWEEPS[args.sweep]():
        if key_of(run) not in done:
            append(path, trained(run, tokens, held_out))


def read_tokens() -> tuple[np.ndarray, np.ndarray]:
    """Tokens to train on and held-out tokens, by the tokenizer of the packaged model."""
    tokenizer = Tokenizer.from_file(str(PRETRAINED / "tokenizer.json"))
    texts = pretrain.split_chapters(pretrain.king_james())
    training, held_out = (np.array(tokenizer.encode(text).ids, np.int32) for text in texts)
    return training, held_out


def trained(run: Run, tokens: np.ndarray, held_out: np.ndarray) -> dict[str, Any]:
    """Train, and measure the held-out loss: a line of the table."""
    arm, changes, rate, seed = run
    model_class, args_class, config = ARMS[arm]
    mx.random.seed(seed)
    model = model_class(args_class.from_dict(config | changes))
    parameters = sum(weight.size for _, weight in tree_flatten(model.parameters()))
    schedule = pretrain.schedule(rate, WARMUP, STEPS)
    optimizer = optim.AdamW(schedule, betas=[0.9, 0.95], weight_decay=0.1)
    optimizer.init(model.trainable_parameters())
    state = [model.state, optimizer.state]

    update = pretrain.compiled_step(model, optimizer, state)
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
    line = {
        "arm": arm,
        "changes": json.dumps(changes, sort_keys=True),
        "learning rate": rate,
        "seed": seed,
        "parameters": parameters,
        **losses,
        "seconds": round(seconds),
    }
    print(json.dumps(line), flush=True)
    return line


def key_of(run: Run) -> tuple[str, ...]:
    arm, changes, rate, seed = run
    return arm, json.dumps(changes, sort_keys=True), str(rate), str(seed)


def known_runs(path: Path) -> set[tuple[str, ...]]:
    """The runs whose lines are in a table."""
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        return {
            (line["arm"], line["changes"], line["learning rate"], line["seed"])
            for line in csv.DictReader(file)
        }


def append(path: Path, line: dict[str, Any]) -> None:
    """Write a table anew with one line more, whole or not at all."""
    lines = []
    if path.exists():
        with path.open(newline="") as file:
            lines = list(csv.DictReader(file))
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, newline="") as scratch:
        writer = csv.DictWriter(scratch, list(line))
        writer.writeheader()
        writer.writerows([*lines, line])
    Path(scratch.name).chmod(0o644)
    Path(scratch.name).replace(path)


if __name__ == "__main__":
    main()
