"""Where a model first computes NaN or infinity.

A recurrent state that is once NaN stays NaN, and every sampler makes some text of NaN logits.
So whoever generates or measures asks here before it believes the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from fm_mlx import cache as caches
from fm_mlx.model import Model
from fm_mlx.support.arrays import named_arrays

# Numbers that are looked at together: what is made on the way is not of the size of the array.
_PIECE = 1 << 20


class NotFiniteError(ArithmeticError):
    """A model computed NaN or infinite numbers; the text says where they came up first."""


def is_finite(x: mx.array) -> bool:
    """Whether an array holds neither NaN nor infinite numbers; integers never do."""
    if not mx.issubdtype(x.dtype, mx.floating):
        return True
    numbers = x.reshape(-1)
    pieces = (numbers[i : i + _PIECE] for i in range(0, max(1, numbers.size), _PIECE))
    return all(mx.isfinite(piece).all().item() for piece in pieces)


def logits_are_not_finite(
    model: nn.Module, cache: Sequence[Any], token: int, where: str
) -> NotFiniteError:
    """What to raise when the log-probability of a token that was chosen is no number.

    It is one exactly if no logit is NaN or infinitely large: the normalisation is a sum over
    all of them, and a logit of minus infinity is never chosen.

    Args:
        model: the model that computed it.
        cache: the state of the model after it.
        token: a token to look for the fault with.
        where: begins the sentence: "generation stopped before token 3".

    Returns:
        An error that names the first layer whose state or output is not finite.
    """
    fault = _first_fault(model, cache, mx.array([[token]]))
    return NotFiniteError(f"{where}: the logits are not finite: {fault}")


def check_states(model: nn.Module, cache: Sequence[Any], where: str) -> None:
    """Raise unless the states of all layers are finite.

    Raises:
        NotFiniteError: names the first layer whose state is not.
    """
    if isinstance(model, Model) and (fault := _state_fault(model, cache)):
        raise NotFiniteError(f"{where}: {fault}{_bad_weight(model)}")


class WatchedModel(Model):
    """A model that stops at the first logits that are not finite.

    For programs of others, which believe what they get. Looking at every result costs the
    time that computing one token ahead saves.
    """

    def logits(self, x: mx.array) -> mx.array:
        """`Model.logits`.

        Raises:
            NotFiniteError: names the first layer whose output is not finite.
        """
        logits = super().logits(x)
        # the logits of a prompt are often never computed: what they are made of has to do
        looked_at = logits if x.shape[1] == 1 else x
        if not mx.isfinite(looked_at).all().item() or self._has_bad_head:
            fault = _first_fault(self, [], mx.zeros((1, 1), mx.int32))
            raise NotFiniteError(f"the logits are not finite: {fault}")
        return logits

    @cached_property
    def _has_bad_head(self) -> bool:
        return "lm_head" in self and not is_finite(self.lm_head.weight)


def _state_fault(model: Model, cache: Sequence[Any]) -> str | None:
    """Which layer's state is not finite."""
    states = [caches.state_of(layer) for layer in cache[: len(model.layers)]]
    known = [state for state in states if state is not None]
    if not known or mx.stack([mx.isfinite(state).all() for state in known]).all().item():
        return None
    first = next(i for i, state in enumerate(states) if state is not None and not is_finite(state))
    return f"the state of layer {first} is not"


def _first_fault(model: nn.Module, cache: Sequence[Any], token: mx.array) -> str:
    """Which part of a model makes numbers that are not finite."""
    if not isinstance(model, Model):
        return "the model is of another architecture, which is not searched"
    fault = _state_fault(model, cache)
    if fault is None:
        streams = model.model.residual_streams(token)
        first = next((i for i, stream in enumerate(streams) if not is_finite(stream)), None)
        if first is None:
            fault = "neither are those of the last norm or the head"
        else:
            fault = (
                f"the output of {'the embedding' if first == 0 else f'layer {first - 1}'} is not"
            )
    return fault + _bad_weight(model)


def _bad_weight(model: Model) -> str:
    """Names the first weight that is not finite, if there is one."""
    weights = named_arrays(model.parameters())
    bad = next((name for name, x in weights.items() if not is_finite(x)), None)
    return "" if bad is None else f" ({bad} has NaN or infinite numbers)"
