"""What a model reaches on this device, beside what `fm-mlx plan` says it needs at least."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_map_with_path

from fm_mlx.cache import is_buffered
from fm_mlx.metal_kernels.cost import Cost
from fm_mlx.model import Model, ModelArgs
from fm_mlx.perf.bench import training_step
from fm_mlx.perf.plan import Plan
from fm_mlx.perf.timing import decode, medians_in_turns, seconds_of, started_caches
from fm_mlx.support.arrays import dtype_name

_DECODED = 32


@dataclass(frozen=True)
class Reached:
    """What was done, and how long it took.

    Attributes:
        name: decode, prefill or training.
        tokens: Tokens of a run.
        work: What a run needs at least.
        seconds: The median of the runs.
    """

    name: str
    tokens: int
    work: Cost
    seconds: float


def measure(args: ModelArgs, dtype: mx.Dtype, tokens: int, rounds: int = 3) -> list[Reached]:
    """Decode a token, read a prompt and do a training step, in turns, with random weights.

    Args:
        args: the model.
        dtype: of what is not always float32.
        tokens: of the prompt and of the training step, one sequence.
        rounds: turns of each.
    """
    mx.random.seed(0)
    model, trained = (_model(args, dtype) for _ in range(2))
    prompt = mx.random.randint(0, args.vocab_size, (1, tokens + 1))
    caches = started_caches(model)
    trained.train()
    step = partial(training_step(trained, optim.AdamW(1e-5)), prompt)
    runs = {
        "decode": partial(decode, model, caches, _DECODED),
        "prefill": partial(seconds_of, partial(_read, model, prompt[:, 1:])),
        "training": partial(seconds_of, step),
    }
    for run in runs.values():
        run()  # compiles
    seconds = medians_in_turns(runs, rounds)
    plan = Plan(args, dtype=dtype_name(dtype))
    works = {
        "decode": plan.decode(sparse=is_buffered(caches[0])),
        "prefill": plan.prefill(tokens),
        "training": plan.training(tokens),
    }
    lengths = {"decode": 1, "prefill": tokens, "training": tokens}
    return [Reached(name, lengths[name], works[name], seconds[name]) for name in runs]


def _model(args: ModelArgs, dtype: mx.Dtype) -> Model:
    model = Model(args)
    model.eval()  # as a model that decodes
    cast = model.cast_predicate
    model.update(
        tree_map_with_path(lambda name, x: x.astype(dtype) if cast(name) else x, model.parameters())
    )
    mx.eval(model.parameters())
    return model


def _read(model: Model, prompt: mx.array) -> None:
    """Without the head, which a prompt does not need."""
    cache = model.make_cache()
    mx.eval(model.model(prompt, cache), [c.state for c in cache])
