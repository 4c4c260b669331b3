"""How times are taken: arms in turns, tokens computed one ahead, medians."""

from __future__ import annotations

import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn

from fm_mlx import cache as caches
from fm_mlx.model import Model
from fm_mlx.support.arrays import mlx_version


def seconds_of(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def medians_in_turns(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median over all rounds of the seconds that each run returns.

    The order of a round is random, so that no arm always follows the same other one: what
    that one left in the processor's caches would be charged to it.

    Args:
        runs: the arms by name; each returns the seconds of one turn.
        rounds: the number of turns of each arm.
    """
    order = random.Random(0)
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name in order.sample(list(runs), len(runs)):
            seconds[name].append(runs[name]())
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def decode(model: nn.Module, cache: list, tokens: int) -> float:
    """Median seconds of a greedy token, evaluated one step ahead as in mlx-lm.

    Only the tokens are evaluated ahead: an evaluation that waits in a queue holds every
    array it was given, and a state that is held cannot be written in place.
    """
    token = mx.array([[1]])
    previous = None
    marks = []
    for _ in range(tokens):
        token = model(token, cache=cache)[:, -1].argmax(axis=-1, keepdims=True)
        mx.async_eval(token)
        if previous is not None:
            mx.eval(previous)
        previous = token
        marks.append(time.perf_counter())
    mx.eval(token)
    # the first tokens find other arrays in the caches, and nothing in the queue
    return statistics.median(b - a for a, b in pairwise(marks[len(marks) // 4 :]))


def started_caches(model: Model) -> list:
    """Caches of a batch of one that hold a state of zeros."""
    args, made = model.args, model.make_cache()
    for cache in made:
        state = mx.zeros((1, args.num_memory_states, args.memory_size))
        caches.set_state(cache, state, args.num_active_states)
        mx.eval(cache.state)
    return made


def device_line() -> str:
    """The processor that MLX computes on, and the versions of what is at work."""
    name = mx.device_info().get("device_name") or platform.machine()
    return f"{name}, {mx.default_device()}, MLX {mlx_version()}, {platform.platform(terse=True)}"
