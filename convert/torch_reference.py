"""Factorization Memory in plain PyTorch: the other side of every parity report.

Written from the paper ("Language Modeling With Factorization Memory", Xiong, Tkachenko,
Effendi, Cai, 2025, arXiv:2511.00315, equations 4-13) and not from the MLX code, so that an
error would have to be made twice to go unseen. It trains, on any device of PyTorch.

    paper      here
    W_alpha    memory.w_alpha    scores of the m rows, or of two halves
    w_eta      memory.w_eta      update rate
    w_mu       memory.w_mu       merge rate
    W_i, W_o   memory.w_in, memory.w_out
    alpha      affinity          softmax, top-k, renormalised
    theta      write             eta * alpha
    phi        merge             mu * alpha
    h          state             (batch, m, d)

The weights may have any float dtype; routing, recurrence and norms are float32 or float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Tokens that the vectorised scan holds states of at once.
_CHUNK = 16


@dataclass
class Config:
    """The keys of config.json."""

    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    vocab_size: int
    memory_size: int
    num_memory_states: int
    num_active_states: int
    affinity_temperature: float = 1.0
    router: str = "linear"
    rms_norm_eps: float = 1e-6
    memory_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True

    @property
    def product_keys(self) -> bool:
        """Whether the scores of the m rows are sums of those of two halves."""
        return self.router == "product"


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or in float64 if it has that already."""
    return x if x.dtype == torch.float64 else x.float()


def product_scores(halves: Tensor) -> Tensor:
    """(..., 2 n) -> (..., n * n): the sum of every score of one half with every one of the other.

    Product keys (arXiv:1907.05242), which are not the paper's.
    """
    first, second = halves.chunk(2, dim=-1)
    return (first.unsqueeze(-1) + second.unsqueeze(-2)).flatten(-2)


def affinity(scores: Tensor, num_active: int, temperature: float) -> Tensor:
    """alpha (..., m): softmax over all rows, then the k largest, renormalised.

    Equal scores go to the lowest index, which a stable sort promises and topk does not.
    """
    alpha = torch.softmax(scores / temperature, dim=-1)
    if num_active == scores.shape[-1]:
        return alpha
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    active = torch.zeros_like(alpha).scatter(-1, order[..., :num_active], 1.0)
    alpha = alpha * active
    return alpha / alpha.sum(dim=-1, keepdim=True)


def read_rows(merge: Tensor, state: Tensor, eps: float) -> Tensor:
    """sum_i phi[i] h[i] / rms(h[i]): (..., m), (..., m, d) -> (..., d)."""
    rms = torch.sqrt(state.square().mean(dim=-1) + eps)
    return torch.einsum("...m,...md->...d", merge / rms, state)


def step_loop(
    write: Tensor, merge: Tensor, values: Tensor, state: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The recurrence as it stands: token by token, the write before the read.

    Args:
        write: theta, (B, T, m).
        merge: phi, (B, T, m).
        values: v, (B, T, d).
        state: h_0, (B, m, d).
        eps: under the root of a row's mean square.

    Returns:
        y (B, T, d) and the last state.
    """
    outputs = []
    for t in range(values.shape[1]):
        theta = write[:, t, :, None]
        state = (1 - theta) * state + theta * values[:, t, None, :]
        outputs.append(read_rows(merge[:, t], state, eps))
    return torch.stack(outputs, dim=1), state


def vector_scan(
    write: Tensor, merge: Tensor, values: Tensor, state: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """`step_loop` without a loop over tokens: all states of a chunk, by doubling.

    A token maps h to a * h + b. Two such maps, one after the other, are one again: (a1, b1)
    then (a2, b2) is (a2 a1, a2 b1 + b2). In log2(chunk) rounds every token holds the
    map from the start of its chunk. No quotient and no logarithm: theta = 1 is exact.
    """
    outputs = []
    for theta, phi, v in zip(
        *(x.split(_CHUNK, dim=1) for x in (write, merge, values)), strict=True
    ):
        keep = 1 - theta
        offset = theta[..., None] * v[:, :, None, :]
        reach = 1
        while reach < keep.shape[1]:
            later, before = keep[:, reach:], keep[:, :-reach]
            offset = torch.cat(
                [offset[:, :reach], later[..., None] * offset[:, :-reach] + offset[:, reach:]], 1
            )
            keep = torch.cat([keep[:, :reach], later * before], dim=1)
            reach *= 2
        states = keep[..., None] * state[:, None] + offset
        outputs.append(read_rows(phi, states, eps))
        state = states[:, -1]
    return torch.cat(outputs, dim=1), state


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        wide = at_least_float32(x)
        wide = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return (wide * self.weight).to(x.dtype)


class FactorizationMemory(nn.Module):
    """x (B, T, hidden) -> (B, T, hidden), and the last state."""

    def __init__(self, config: Config):
        super().__init__()
        hidden, width, rows = config.hidden_size, config.memory_size, config.num_memory_states
        self.config = config
        self.w_in = nn.Linear(hidden, width, bias=False)
        scores = 2 * math.isqrt(rows) if config.product_keys else rows
        self.w_alpha = nn.Linear(hidden, scores, bias=False)
        self.w_eta = nn.Linear(hidden, 1, bias=False)
        self.w_mu = nn.Linear(hidden, 1, bias=False)
        self.w_out = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor, state: Tensor | None = None, *, loop: bool = False):
        config = self.config
        wide = at_least_float32(x)

        def routed(linear: nn.Linear) -> Tensor:
            return F.linear(wide, linear.weight.to(wide.dtype))

        scores = routed(self.w_alpha)
        if config.product_keys:
            scores = product_scores(scores)
        alpha = affinity(scores, config.num_active_states, config.affinity_temperature)
        write = torch.sigmoid(routed(self.w_eta)) * alpha
        merge = torch.sigmoid(routed(self.w_mu)) * alpha
        values = at_least_float32(self.w_in(x))
        if state is None:
            state = values.new_zeros(x.shape[0], config.num_memory_states, config.memory_size)
        recurrence = step_loop if loop else vector_scan
        y, state = recurrence(write, merge, values, state, config.memory_norm_eps)
        return self.w_out(y.to(x.dtype)), state


class MLP(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.norm1 = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.memory = FactorizationMemory(config)
        self.norm2 = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, state: Tensor | None, *, loop: bool):
        y, state = self.memory(self.norm1(x), state, loop=loop)
        x = x + y
        return x + self.mlp(self.norm2(x)), state


class LanguageModel(nn.Module):
    """Tokens (B, T) -> logits (B, T, vocab).

    Args of a call:
        tokens: int64.
        states: one per layer, as a call with ``return_states`` gives them; None starts empty.
        loop: token by token instead of the vectorised scan.
        return_states: also give the states after the last token.
        hidden: a list that gets the residual stream after the embedding and every block.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self,
        tokens: Tensor,
        states: list[Tensor] | None = None,
        *,
        loop: bool = False,
        return_states: bool = False,
        hidden: list[Tensor] | None = None,
    ):
        x = self.embedding(tokens)
        hidden = [] if hidden is None else hidden
        hidden.append(x)
        last = []
        for block, state in zip(self.blocks, states or [None] * len(self.blocks), strict=True):
            x, state = block(x, state, loop=loop)
            hidden.append(x)
            last.append(state)
        x = self.norm(x)
        head = self.embedding if self.config.tie_word_embeddings else self.head
        logits = F.linear(x, head.weight)
        return (logits, last) if return_states else logits
