"""The states of all layers as one array, in and out of the caches of a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache

from fm_mlx.cache import set_state, state_of
from fm_mlx.model import Model


def first_states(model: Model) -> mx.array:
    """The states (layers, m, d) float32 before the first token: learned ones, or zeros."""
    shape = (model.args.num_memory_states, model.args.memory_size)
    learned = model.initial_memory.states()
    states = mx.stack([mx.zeros(shape) if state is None else state for state in learned])
    mx.eval(states)  # an array that waits belongs to one thread
    return states


def put_states(cache: Iterable[ArraysCache], states: mx.array, num_active: int) -> None:
    """Put the states (layers, m, d) of a text into caches; k is that of the steps to come."""
    for layer, state in zip(cache, states, strict=True):
        set_state(layer, state[None], num_active)


def states_of(cache: Iterable[ArraysCache]) -> mx.array:
    """The states (layers, m, d) float32 in the caches of one text that was read, evaluated."""
    states = mx.concatenate([cast(mx.array, state_of(layer)) for layer in cache])
    mx.eval(states)
    return states


def cache_from(model: Model, states: mx.array) -> list[ArraysCache]:
    """Caches from which a model goes on with the states (layers, m, d) float32."""
    made = model.make_cache()
    put_states(made, states, model.args.num_active_states)
    return made
