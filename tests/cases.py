"""What the tests of the mathematics share: the code under test, its inputs, its oracle.

A law (laws/) is a function of `Code`, so that it can be run on the package and, by mutant.py, on a
copy of the package with one line broken.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from fm_mlx import reference
from fm_mlx.metal_kernels import simulator

# The spellings of the inside of a chunk. memory_scan picks one by device; "kernel" is the
# Metal source of every kernel of the scan, executed by the simulator.
FORMS = ("factored", "portable", "kernel")

# float32 against the float64 loop, on outputs of unit scale: a few dozen roundings of
# 6e-8. Measured: 2e-7 (factored), 7e-7 (portable, kernel); 3e-6 after 100 writes of 1e-7, of
# which the decay 1 - 1e-7 is off by 2e-8 each in float32, in the step as well.
SCAN_TOLERANCE = 4e-6

# A row that cancels (h near 0) loses digits in ||h||^2, which the scan builds from scalar
# products. With d columns that happens with the probability that d numbers vanish at
# once: rare from d = 3, every few hundred tokens at d = 1. Measured at d = 1: up to 1.1e-3.
CANCELLING_TOLERANCE = 5e-3

# Logits of a two-layer model against the float64 model.
LOGITS_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Code:
    """The modules under test."""

    ops: ModuleType
    scan: ModuleType
    chunk_map: ModuleType
    layer: ModuleType
    model: ModuleType
    cache: ModuleType
    launch: ModuleType

    @classmethod
    def imported(cls) -> Code:
        """What ``import fm_mlx`` finds now."""
        names = ("ops", "ops.scan", "ops.chunk_map", "layer", "model", "cache")
        names += ("metal_kernels.launch",)
        return cls(*(importlib.import_module(f"fm_mlx.{name}") for name in names))

    @contextmanager
    def form(self, name: str) -> Iterator[None]:
        """Run `memory_scan` with one of FORMS, and fail if it was never asked."""
        spelled = getattr(self.chunk_map, f"{name}_chunk_map")
        calls = 0

        def chunk_map(theta, phi, gram, projection, norm0, width, eps):
            nonlocal calls
            calls += 1
            return spelled(width, eps)(theta, phi, gram, projection, norm0)

        if name == "kernel" and (reason := simulator.unavailable()):
            pytest.skip(reason)
        chosen, self.scan.chunk_map = self.scan.chunk_map, chunk_map
        try:
            with self.launch.using("simulator") if name == "kernel" else nullcontext():
                yield
        finally:
            self.scan.chunk_map = chosen
        assert calls, f"the {name} form was not run"


REAL = Code.imported()


@dataclass(frozen=True, eq=False)
class Case:
    """Inputs of the recurrence, float32 NumPy arrays: B rows of T tokens. Not to be written to."""

    theta: np.ndarray  # (B, T, m)
    phi: np.ndarray  # (B, T, m)
    values: np.ndarray  # (B, T, d)
    state: np.ndarray | None = None  # (B, m, d)
    mask: np.ndarray | None = None  # (B, T)

    @property
    def length(self) -> int:
        return self.theta.shape[1]

    def tokens(self, start: int, stop: int | None = None, state: Any = None) -> Case:
        """Tokens start to stop, from another state."""
        cut = slice(start, stop)
        mask = None if self.mask is None else self.mask[:, cut]
        return Case(self.theta[:, cut], self.phi[:, cut], self.values[:, cut], state, mask)

    def row(self, row: int) -> Case:
        """One row of the batch as a batch of one."""
        one = slice(row, row + 1)
        state = None if self.state is None else self.state[one]
        mask = None if self.mask is None else self.mask[one]
        return Case(self.theta[one], self.phi[one], self.values[one], state, mask)

    def arrays(self) -> tuple[mx.array | None, ...]:
        """(theta, phi, values, state, mask) for MLX."""
        fields = (self.theta, self.phi, self.values, self.state, self.mask)
        return tuple(None if x is None else mx.array(x) for x in fields)


@cache
def routed(
    shape: tuple[int, int, int, int], num_active: int, seed: int = 0, *, empty: bool = False
) -> Case:
    """A case as a layer makes it: affinities of random logits times random rates.

    Args:
        shape: B, T, m, d.
        num_active: k.
        empty: no state to start from.
    """
    batch, length, rows, width = shape
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(batch * length, rows)) * 2
    alpha = reference.affinity(logits, num_active).reshape(batch, length, rows)
    update, merge = reference.sigmoid(rng.normal(size=(2, batch, length, 1)) * 2)
    state = None if empty else rng.normal(size=(batch, rows, width))
    return _float32(
        Case(update * alpha, merge * alpha, rng.normal(size=(batch, length, width)), state)
    )


@cache
def extreme(kind: str, shape: tuple[int, int, int, int], seed: int = 0) -> Case:
    """A routed dense case with write weights at an end of their range."""
    case = routed(shape, shape[2], seed)
    rng = np.random.default_rng(seed + 1)
    size = case.theta.shape
    theta = {
        # every token overwrites every row: the decay of a chunk is 0
        "overwrite": np.ones(size),
        # the largest float32 below 1
        "nearly overwrite": np.full(size, 1 - 2.0**-24),
        # k = 1 with a saturated update rate: one row is replaced, the others kept
        "one row replaced": np.eye(size[-1])[rng.integers(0, size[-1], size[:2])],
        "nothing written": np.zeros(size),
        "tiny writes": np.full(size, 1e-7),
        "all of these": rng.choice([0, 1e-7, 0.5, 1 - 2.0**-24, 1], size),
    }[kind]
    return _float32(replace(case, theta=theta))


@cache
def overwritten(shape: tuple[int, int, int, int], seed: int = 0) -> Case:
    """Rows that are replaced now and then, of values and states of very unlike sizes.

    The state is 1e4 times as large as the values, which themselves differ by up to 1e6.
    """
    case = routed(shape, shape[2], seed)
    rng = np.random.default_rng(seed + 2)
    often = rng.choice([0.05, 0.5, 1.0])
    theta = np.where(rng.uniform(size=case.theta.shape) < often, 1.0, case.theta)
    # every other row is replaced once, within the first tokens, and then left alone
    theta[:, :3, ::2], theta[:, 3, ::2], theta[:, 4:, ::2] = case.theta[:, :3, ::2], 1, 0
    size = 10.0 ** rng.uniform(-3, 3, (*case.values.shape[:2], 1))
    return _float32(replace(case, theta=theta, values=case.values * size, state=1e4 * case.state))


EXTREMES = (
    "overwrite",
    "nearly overwrite",
    "one row replaced",
    "nothing written",
    "tiny writes",
    "all of these",
)


def _float32(case: Case) -> Case:
    fields = ((name, getattr(case, name)) for name in ("theta", "phi", "values", "state"))
    return replace(case, **{n: None if x is None else x.astype(np.float32) for n, x in fields})


def double(x: np.ndarray | None) -> np.ndarray | None:
    return None if x is None else np.asarray(x, dtype=np.float64)


def loop(case: Case, eps: float = 1e-6) -> tuple[np.ndarray, np.ndarray]:
    """The oracle: reference.memory_loop in float64 on the unmasked tokens of each row."""
    batch, length, rows = case.theta.shape
    width = case.values.shape[-1]
    y = np.zeros((batch, length, width))
    states = np.zeros((batch, rows, width))
    for b in range(batch):
        real = slice(None) if case.mask is None else case.mask[b]
        start = None if case.state is None else double(case.state[b])
        theta, phi, values = (double(x[b][real]) for x in (case.theta, case.phi, case.values))
        y[b, real], states[b] = reference.memory_loop(theta, phi, values, start, eps)
    return y, states


def scan(code: Code, case: Case, **kwargs) -> tuple[np.ndarray, np.ndarray]:
    """`memory_scan` of the code under test."""
    y, state = code.ops.memory_scan(*case.arrays(), **kwargs)
    assert state.dtype == mx.float32
    return np.array(y), np.array(state)


def steps(code: Code, case: Case, **kwargs) -> tuple[np.ndarray, np.ndarray]:
    """`memory_step` of the code under test, token by token."""
    theta, phi, values, state, mask = case.arrays()
    if state is None:
        state = mx.zeros((theta.shape[0], theta.shape[2], values.shape[2]))
    ys = []
    for t in range(case.length):
        token = [x[:, t : t + 1] for x in (theta, phi, values)]
        keep = None if mask is None else mask[:, t : t + 1]
        y, state = code.ops.memory_step(*token, state, keep, **kwargs)
        ys.append(y)
    return np.array(mx.concatenate(ys, axis=1)), np.array(state)


def close(got: Any, wanted: Any, tolerance: float, what: str) -> float:
    """Assert max |got - wanted| <= tolerance * max(1, the largest wanted); give the maximum."""
    got, wanted = double(np.array(got)), double(np.array(wanted))
    assert got.shape == wanted.shape, f"{what}: shape {got.shape}, wanted {wanted.shape}"
    assert np.isfinite(got).all(), f"{what}: not finite"
    error = np.abs(got - wanted).max(initial=0) / max(1.0, np.abs(wanted).max(initial=0))
    assert error <= tolerance, f"{what}: error {error:.2e}, allowed {tolerance:.0e}"
    return error


def same_bits(got: Any, wanted: Any, what: str) -> None:
    """Assert equality without tolerance."""
    assert np.array_equal(np.array(got), np.array(wanted)), f"{what}: not bit-equal"


TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "vocab_size": 50,
    "memory_size": 12,
    "num_memory_states": 6,
    "num_active_states": 2,
    "affinity_temperature": 0.5,
}


def tiny_model(code: Code, seed: int = 0, **config: Any):
    """A random model of the code under test, as `load` gives it: not in training."""
    mx.random.seed(seed)
    args = code.model.ModelArgs.from_dict({**TINY, **config})
    model = code.model.Model(args)
    # embeddings of nn.Embedding are small; wide ones make the routing decided
    model.model.embed_tokens.weight = mx.random.normal(model.model.embed_tokens.weight.shape)
    mx.eval(model.parameters())
    return model.eval()


def tokens(shape: tuple[int, ...], seed: int = 0) -> mx.array:
    rng = np.random.default_rng(seed)
    return mx.array(rng.integers(0, TINY["vocab_size"], shape))
