"""Many texts at once: tokens per second of 1 to 128, beside a llama and a mamba2 of equal size.

    python evidence/batches.py

All arms go on from a prompt of 128 tokens in mlx-lm's batch generator; FM's rows each from a
memory of their own as well. They take turns in one process; figures are medians.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

import mlx.core as mx
from figures import record
from mlx_lm.generate import BatchGenerator

from fm_mlx.memory.states import cache_from
from fm_mlx.perf.bench import build_arms
from fm_mlx.perf.timing import medians_in_turns

ROWS = (1, 8, 32, 128)
PROMPT = 128
TOKENS = 48
MEMORY = "fm with memories"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns of each arm (3)")
    args = parser.parse_args()
    arms = {arm.name: arm.model for arm in build_arms(4)}
    arms[MEMORY] = arms["fm"]
    rows = []
    for count in ROWS:
        runs = {
            name: partial(seconds_of_decode, name, model, count) for name, model in arms.items()
        }
        seconds = medians_in_turns(runs, args.rounds)
        speeds = {name: round(count * TOKENS / taken, 1) for name, taken in seconds.items()}
        ratios = {
            f"fm : {name}": round(speeds["fm"] / speed, 2)
            for name, speed in speeds.items()
            if name != "fm"
        }
        rows.append({"rows": count, "tokens/s": speeds, "ratios": ratios})
        print(rows[-1], flush=True)
    record("batches", {"prompt": PROMPT, "tokens": TOKENS, "rounds": args.rounds, "rows": rows})


def seconds_of_decode(name: str, model: Any, count: int) -> float:
    """Seconds of all tokens but the first of each row."""
    mx.random.seed(0)
    prompts = mx.random.randint(2, 2048, (count, PROMPT)).tolist()
    caches = None
    if name == MEMORY:
        args = model.args
        shape = (args.num_hidden_layers, args.num_memory_states, args.memory_size)
        caches = [cache_from(model, mx.random.normal(shape)) for _ in prompts]
    generator = BatchGenerator(
        model, max_tokens=TOKENS + 1, prefill_batch_size=count, completion_batch_size=count
    )
    generator.insert(prompts, caches=caches)
    generator.next_generated()
    start = time.perf_counter()
    while generator.next_generated():
        pass
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
