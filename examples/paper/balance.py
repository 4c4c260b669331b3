"""A training loss that asks the tokens to spread over the rows: an option, not the paper's.

Routers that choose the best k of many tend to send everything to a few. The load balancing of
mixtures of experts (Fedus, Zoph, Shazeer, 2021, arXiv:2101.03961) adds, for each layer,
m * sum_i f_i p_i to the loss: f_i is the share of the affinity that row i gets, p_i the mean of its
softmax before the cut to k. It is least, 1, when all rows get the same.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from fm_mlx.layer import FactorizationMemory
from fm_mlx.model import Model


class Loads:
    """What the layers of a model add to the loss of the pass that is being computed."""

    def __init__(self):
        self.of_layers: list[mx.array] = []


class BalancedMemory(FactorizationMemory):
    """A memory layer that notes how unevenly its rows are used."""

    loads: Loads

    def route(self, x, cache=None):
        routing = super().route(x, cache)
        theta = routing.theta
        got = (theta / theta.sum(axis=-1, keepdims=True)).mean(axis=(0, 1))
        logits = self.router(x)[..., :-2] / self.affinity_temperature
        wanted = mx.softmax(logits, axis=-1).mean(axis=(0, 1))
        load = self.num_memory_states * (mx.stop_gradient(got) * wanted).sum()
        self.loads.of_layers.append(load)
        return routing


def balanced(
    model: Model, weight: float, loss_fn: Callable[[nn.Module, mx.array], mx.array]
) -> Callable[[nn.Module, mx.array], mx.array]:
    """Make the memories of a model balanced ones, and a loss that counts their loads too.

    Args:
        model: changed in place; its weights and what it computes stay as they are.
        weight: of the mean load of the layers.
        loss_fn: (model, windows) -> the loss without the loads.
    """
    loads = Loads()
    for block in model.layers:
        block.memory.__class__ = BalancedMemory
        block.memory.loads = loads

    def loss(model: nn.Module, windows: mx.array) -> mx.array:
        loads.of_layers = []
        own = loss_fn(model, windows)
        of_layers, loads.of_layers = loads.of_layers, []
        return own + weight * mx.stack(of_layers).mean()

    return loss
