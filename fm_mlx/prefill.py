"""Reading a prompt: a model takes in a piece of it, and only the states are computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from fm_mlx.finite import check_states


def prefill(model: nn.Module, tokens: list[int], cache: Sequence[Any], where: str) -> None:
    """Feed tokens to a model; their logits are never computed.

    Args:
        model: the model.
        tokens: the piece of the prompt.
        cache: the state of each layer, updated in place and evaluated.
        where: begins the sentence of the error: "reading stopped within the first 2,048 tokens".

    Raises:
        NotFiniteError: names the first layer whose state is not finite.
    """
    model(mx.array(tokens)[None], cache=cache)
    mx.eval([entry.state for entry in cache])
    mx.clear_cache()
    check_states(model, cache, where)
