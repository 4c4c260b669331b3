"""What the number of rows costs: a decoded token and a prompt, with and without product keys.

    python evidence/many_rows.py

Models of `fm-mlx bench` that differ in their rows and routers alone take turns in one process;
figures are medians. What the product of the router alone takes stands beside them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import mlx.core as mx
from figures import record

from fm_mlx.layer import LINEAR, PRODUCT
from fm_mlx.model import Model, ModelArgs
from fm_mlx.perf.bench import FM_CONFIG, Arm
from fm_mlx.perf.timing import decode, medians_in_turns, seconds_of, started_caches
from fm_mlx.support.allocator import keep_freed_memory

# router, m, k
MODELS = (
    (LINEAR, 64, 8),
    (LINEAR, 512, 8),
    (LINEAR, 4096, 8),
    (LINEAR, 64, 2),
    (LINEAR, 512, 2),
    (LINEAR, 4096, 2),
    (PRODUCT, 4096, 8),
    (PRODUCT, 65536, 8),
    (PRODUCT, 65536, 2),
)
PROMPT = 2048
TOKENS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each model (5)")
    args = parser.parse_args()
    keep_freed_memory()
    rows = []
    for name, m, k in MODELS:
        config = FM_CONFIG | dict(router=name, num_memory_states=m, num_active_states=k)
        rows.append(({"router": name, "m": m, "k": k}, runs_of(build(config))))
    together = {
        f"{i} {what}": run for i, (_, runs) in enumerate(rows) for what, run in runs.items()
    }
    for run in together.values():
        run()  # compiles
    seconds = medians_in_turns(together, args.rounds)
    lines = [
        line | {what: round(1e6 * seconds[f"{i} {what}"], 2) for what in runs}
        for i, (line, runs) in enumerate(rows)
    ]
    for line in lines:
        print(line, flush=True)
    record("many_rows", {"prompt": PROMPT, "rounds": args.rounds, "microseconds a token": lines})


def build(config: dict) -> Model:
    mx.random.seed(0)
    model = Arm.build("fm", Model, ModelArgs, config).model
    assert isinstance(model, Model)
    return model


def runs_of(model: Model) -> dict[str, Callable[[], float]]:
    """Seconds of a token, decoded and of a prompt, and of the product of the router in each."""
    prompt = mx.random.randint(0, model.args.vocab_size, (1, PROMPT))
    wide = mx.random.normal((1, PROMPT, model.args.hidden_size))
    weights = [layer.memory.router.weight for layer in model.layers]
    mx.eval(prompt, wide)

    def read() -> None:
        cache = model.make_cache()
        mx.eval(model.model(prompt, cache), [layer.state for layer in cache])

    def route(x: mx.array) -> None:
        mx.eval([x @ weight.T for weight in weights])

    def seconds_a_token(run: Callable[[], None], tokens: int) -> float:
        return seconds_of(run) / tokens

    return {
        "decode": partial(decode, model, started_caches(model), TOKENS),
        "decode, router": partial(seconds_a_token, partial(route, wide[:, :1]), 1),
        "prompt": partial(seconds_a_token, read, PROMPT),
        "prompt, router": partial(seconds_a_token, partial(route, wide), PROMPT),
    }


if __name__ == "__main__":
    main()
