"""What the update of the memory adds to a decoded token, by the number of rows.

A write that happens in place costs the same for any m; one that copies costs the size of
the state. The time is that of a model's own step less that of the same step without the
update, both evaluated one token ahead as mlx-lm does it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import mlx.core as mx

from fm_mlx import ops
from fm_mlx.layer import FactorizationMemory
from fm_mlx.model import Model, ModelArgs
from fm_mlx.perf.timing import decode, medians_in_turns, started_caches

_TOKENS = 32  # of a turn


class _Forgetful(FactorizationMemory):
    """Chooses rows, but neither writes nor reads them."""

    def recurrence(self, routing, values, *_):
        if isinstance(routing, mx.array):
            routing = ops.route(routing, self.num_active_states, self.affinity_temperature)
        theta, phi = routing[-2:]
        return values * (theta.sum() + phi.sum()).astype(values.dtype)


@dataclass(frozen=True)
class UpdateCost:
    """Of a decoded token, in seconds.

    Attributes:
        step: The time of the whole token.
        update: The part of it that the memory's update takes in each layer, beyond routing and
            projections.
    """

    step: float
    update: float


def update_cost(
    rows: tuple[int, ...],
    *,
    hidden_size: int = 256,
    num_layers: int = 2,
    num_active: int = 8,
    rounds: int = 60,
) -> dict[int, UpdateCost]:
    """Measure models that differ in m alone.

    Args:
        rows: the numbers m.
        hidden_size: also the width d of a row.
        num_layers: blocks of each model.
        num_active: k.
        rounds: turns of each model; each decodes 32 tokens.
    """
    runs = {}
    for m in rows:
        args = ModelArgs(
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            intermediate_size=3 * hidden_size,
            vocab_size=512,
            num_memory_states=m,
            num_active_states=num_active,
        )
        for forgetful in (False, True):
            model = _model(args, forgetful)
            runs[f"{m}, {forgetful}"] = partial(decode, model, started_caches(model), _TOKENS)
    for run in runs.values():
        run()  # compiles
    taken = medians_in_turns(runs, rounds)
    return {
        m: UpdateCost(
            taken[f"{m}, False"], (taken[f"{m}, False"] - taken[f"{m}, True"]) / num_layers
        )
        for m in rows
    }


def _model(args: ModelArgs, forgetful: bool) -> Model:
    mx.random.seed(0)
    model = Model(args)
    model.eval()  # as a model that decodes
    if forgetful:
        for block in model.layers:
            block.memory.__class__ = _Forgetful
    mx.eval(model.parameters())
    return model
