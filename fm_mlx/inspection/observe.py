"""What the memory layers of a model do with a prompt, measured token by token and row by row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import ArraysCache

from fm_mlx import cache as caches
from fm_mlx import ops
from fm_mlx.finite import check_states
from fm_mlx.inspection.lens import RowTokens, row_tokens
from fm_mlx.model import Block, Model

# Tokens of the prompt that are read at a time.
_PIECE = 1024

# A logit of a rate whose sigmoid is 1 in float32, so that theta is the affinity itself.
_FULL_RATE = 1e3


class Routed(NamedTuple):
    """How a layer routed tokens: the affinity alpha, and both rates.

    Attributes:
        affinity: alpha, (B, T, m) float32; 0 where a row is not active; sums to 1 over the rows.
        update_rate: eta, (B, T) float32, from 0 to 1.
        merge_rate: mu, (B, T) float32, from 0 to 1.
    """

    affinity: mx.array
    update_rate: mx.array
    merge_rate: mx.array


@dataclass(frozen=True, eq=False)
class LayerUse:
    """What one layer did with a prompt of n tokens, of which the last s are kept one by one.

    The memory has m rows of d numbers. Sums and means are over all n tokens.

    Attributes:
        affinity: alpha of the tokens kept, (s, m) float32.
        update_rate: eta of the tokens kept, (s,) float32.
        merge_rate: mu of the tokens kept, (s,) float32.
        usage: the share of all affinity that each row got, (m,) float64; sums to 1.
        touched: the number of tokens for which each row was active, (m,) int64.
        token_entropy: the mean over the tokens of the entropy of alpha, in nats.
        decay: the mean over the tokens of -ln(1 - theta), (m,) float64; infinite where a token
            replaced all that a row held, 0 for a row that nothing was written to.
        mean_update_rate: the mean of eta.
        mean_merge_rate: the mean of mu.
        state: the memory after the prompt, (m, d) float32.
        nearest: the tokens that each row points to after the prompt.
    """

    affinity: np.ndarray
    update_rate: np.ndarray
    merge_rate: np.ndarray
    usage: np.ndarray
    touched: np.ndarray
    token_entropy: float
    decay: np.ndarray
    mean_update_rate: float
    mean_merge_rate: float
    state: np.ndarray
    nearest: RowTokens

    @property
    def write_weight(self) -> np.ndarray:
        """theta = eta alpha of the tokens kept, (s, m)."""
        return self.update_rate[:, None] * self.affinity

    @property
    def merge_weight(self) -> np.ndarray:
        """phi = mu alpha of the tokens kept, (s, m)."""
        return self.merge_rate[:, None] * self.affinity

    @property
    def rows_used(self) -> float:
        """exp of the entropy of `usage`, 1 to m: as many rows, used equally, are as uncertain."""
        share = self.usage[self.usage > 0]
        return float(np.exp(-np.sum(share * np.log(share))))

    @property
    def rows_per_token(self) -> float:
        """exp of `token_entropy`, 1 to k: over how many rows a token spreads; at most `rows_used`.

        The nearer it is to `rows_used`, the less the choice of rows depends on the token.
        """
        return math.exp(self.token_entropy)

    @property
    def half_life(self) -> np.ndarray:
        """ln 2 / decay, (m,) float64: the tokens after which half is left of what a row held.

        A row keeps the product of 1 - theta over the tokens of what it held before them. This is
        the number of tokens that halves it at the mean rate of the prompt; infinite for rows that
        nothing was written to.
        """
        with np.errstate(divide="ignore"):
            return math.log(2) / self.decay

    @property
    def median_half_life(self) -> float:
        """The median of `half_life` over the rows, infinite ones among them."""
        return float(np.median(self.half_life))


@dataclass(frozen=True, eq=False)
class Observation:
    """What a model did with a prompt.

    Attributes:
        tokens: the number n of tokens of the prompt.
        kept: the ids of its last s tokens.
        num_active: the number k of rows that a token touches.
        layers: one for each layer, from the first.
    """

    tokens: int
    kept: list[int]
    num_active: int
    layers: list[LayerUse]

    @property
    def first_kept(self) -> int:
        """The number of the first token kept, counted from 1."""
        return self.tokens - len(self.kept) + 1


def observe(
    model: Model,
    pieces: Iterable[list[int]],
    *,
    keep: int = 512,
    nearest: int = 5,
    vocabulary: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Observation:
    """Read a prompt of any length, and watch the layers do it.

    Args:
        model: a Factorization Memory model.
        pieces: the token ids of the prompt, one list after the other.
        keep: how many tokens, the last ones, are kept one by one.
        nearest: how many tokens to find for each row (`lens.row_tokens`).
        vocabulary: how many tokens of the model's vocabulary have a text; None: all.
        progress: called with the number of tokens read and None, as in `stream_generate`.

    Raises:
        ValueError: the prompt has no tokens.
        NotFiniteError: a state is NaN or infinite; names the first such layer.
    """
    cache = model.make_cache()
    sums = [_Sums(keep) for _ in model.layers]
    read, kept = 0, []
    for ids in pieces:
        for start in range(0, len(ids), _PIECE):
            piece = ids[start : start + _PIECE]
            _, routed = walk(model, mx.array(piece)[None], cache)
            mx.eval(*routed, [entry.state for entry in cache])
            check_states(model, cache, f"reading stopped within the first {read + len(piece):,}")
            for layer, layer_sums in zip(routed, sums, strict=True):
                layer_sums.add(layer)
            read += len(piece)
            kept = (kept + piece)[-keep:]
            if progress is not None:
                progress(read, None)
    if not read:
        raise ValueError("the prompt has no tokens")
    layers = []
    for block, entry, layer_sums in zip(model.layers, cache, sums, strict=True):
        state = caches.state_of(entry)
        assert state is not None  # tokens were read
        tokens = row_tokens(model, block.memory, state[0], nearest, vocabulary)
        layers.append(layer_sums.result(np.array(state[0]), tokens))
    return Observation(read, kept, model.args.num_active_states, layers)


def walk(model: Model, tokens: mx.array, cache: list[ArraysCache]) -> tuple[mx.array, list[Routed]]:
    """Go through the blocks as the model does, and look at what each router says.

    Args:
        model: the model.
        tokens: (B, T) token ids.
        cache: the state to go on from, from `Model.make_cache`, which is updated.

    Returns:
        What the last norm gives, (B, T, hidden), whose `Model.logits` are those of the model; and
        how each layer routed the tokens.
    """
    x, update = model.model.embed_tokens(tokens), None
    routed = []
    for block, layer_cache in zip(model.layers, cache, strict=True):
        x, normed = block.memory_norm(x, update)
        routed.append(_routed(block, normed))
        x, normed = block.mlp_norm(x, block.memory(normed, cache=layer_cache))
        update = block.mlp(normed)
    return model.model.norm(x, update)[1], routed


def _routed(block: Block, normed: mx.array) -> Routed:
    """What `FactorizationMemory.route` multiplies: with a rate of 1, theta is the affinity."""
    memory = block.memory
    logits = memory.router(normed)
    full = mx.full((*logits.shape[:-1], 2), _FULL_RATE)
    routing = ops.route_dense(
        mx.concatenate([logits[..., :-2], full], axis=-1),
        memory.num_active_states,
        memory.affinity_temperature,
        memory.product_keys,
    )
    rates = mx.sigmoid(logits[..., -2:])
    return Routed(routing.theta, rates[..., 0], rates[..., 1])


class _Sums:
    """Sums up what a layer does, and keeps the last tokens one by one."""

    def __init__(self, keep: int):
        self._keep = keep
        self._tokens = 0
        self._sums: dict[str, Any] = {}
        self._last: list[np.ndarray] = []

    def add(self, routed: Routed) -> None:
        """Take in the tokens of a piece; a batch of one."""
        alpha, eta, mu = last = [np.array(x[0]) for x in routed]
        exact = alpha.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            entropies = -np.where(exact > 0, exact * np.log(exact), 0).sum(axis=1)
            decays = -np.log1p(-(eta[:, None] * alpha).astype(np.float64))
        sums = {
            "usage": exact.sum(axis=0),
            "touched": (alpha > 0).sum(axis=0),
            "entropy": entropies.sum(),
            "decay": decays.sum(axis=0),
            "eta": eta.sum(dtype=np.float64),
            "mu": mu.sum(dtype=np.float64),
        }
        self._sums = {name: self._sums.get(name, 0) + value for name, value in sums.items()}
        self._tokens += len(alpha)
        if self._last:
            last = [np.concatenate(pair) for pair in zip(self._last, last, strict=True)]
        self._last = [x[-self._keep :] for x in last]

    def result(self, state: np.ndarray, nearest: RowTokens) -> LayerUse:
        alpha, eta, mu = self._last
        sums = self._sums
        return LayerUse(
            affinity=alpha,
            update_rate=eta,
            merge_rate=mu,
            usage=sums["usage"] / sums["usage"].sum(),
            touched=sums["touched"],
            token_entropy=max(0.0, sums["entropy"] / self._tokens),
            decay=np.abs(sums["decay"]) / self._tokens,
            mean_update_rate=sums["eta"] / self._tokens,
            mean_merge_rate=sums["mu"] / self._tokens,
            state=state,
            nearest=nearest,
        )
