"""Factorization Memory beside mlx-lm's llama and mamba2 of equal size.

All arms run in one process and take turns, every figure is a median over the
rounds, and what counts are the ratios of one run: absolute times differ from machine to
machine and from hour to hour.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx_lm.models import llama, mamba2
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tuner.utils import linear_to_lora_layers

from fm_mlx.metal_kernels.chunk_scan import MAX_CHUNK
from fm_mlx.model import MODEL_TYPE, Model, ModelArgs
from fm_mlx.perf.timing import decode, medians_in_turns, seconds_of
from fm_mlx.support.arrays import named_arrays, nbytes

VOCAB_SIZE = 2048
PREFILL_STEP = 512
TRAINING_BATCH = 2
DECODED_TOKENS = 48

FM_CONFIG = dict(
    model_type=MODEL_TYPE,
    hidden_size=256,
    num_hidden_layers=10,
    intermediate_size=768,
    vocab_size=VOCAB_SIZE,
    memory_size=256,
    num_memory_states=64,
    num_active_states=8,
    tie_word_embeddings=True,
)
LLAMA_CONFIG = dict(
    model_type="llama",
    hidden_size=256,
    num_hidden_layers=10,
    intermediate_size=624,
    rms_norm_eps=1e-6,
    vocab_size=VOCAB_SIZE,
    tie_word_embeddings=True,
)
MAMBA2_CONFIG = dict(
    model_type="mamba2",
    hidden_size=256,
    num_hidden_layers=16,
    intermediate_size=512,
    num_heads=8,
    head_dim=64,
    state_size=128,
    n_groups=1,
    conv_kernel=4,
    use_bias=False,
    use_conv_bias=True,
    layer_norm_epsilon=1e-6,
    time_step_limit=(0.001, 100.0),
    time_step_rank="auto",
    vocab_size=VOCAB_SIZE,
    tie_word_embeddings=True,
)
# two wide blocks are enough to see what surrounds its matrix products
WIDE_CONFIG = FM_CONFIG | dict(
    hidden_size=1024, num_hidden_layers=2, intermediate_size=3072, memory_size=1024
)


@dataclass
class Arm:
    """A model that is measured beside others."""

    name: str
    model: nn.Module

    @classmethod
    def build(cls, name: str, model_class: type, args_class: type, config: dict) -> Arm:
        model = model_class(args_class.from_dict(config)).eval()
        mx.eval(model.parameters())
        return cls(name, model)

    @property
    def parameters(self) -> int:
        return sum(weight.size for weight in named_arrays(self.model.parameters()).values())


def build_arms(llama_heads: int) -> list[Arm]:
    """FM first: the ratios are FM against each of the others."""
    mx.random.seed(0)
    llama_config = LLAMA_CONFIG | {"num_attention_heads": llama_heads}
    return [
        Arm.build("fm", Model, ModelArgs, FM_CONFIG),
        Arm.build("llama", llama.Model, llama.ModelArgs, llama_config),
        Arm.build("mamba2", mamba2.Model, mamba2.ModelArgs, MAMBA2_CONFIG),
    ]


@dataclass(frozen=True)
class Timed:
    """What an arm came to.

    Attributes:
        seconds: The median of its turns.
        peak: The peak memory of its turns in bytes, weights included.
    """

    seconds: float
    peak: float


def in_turns(
    runs: dict[str, Callable[[], float]], own: dict[str, int], rounds: int
) -> dict[str, Timed]:
    """Give every arm its turn in each round; a run returns the seconds that count.

    Args:
        runs: the arms by name.
        own: the bytes that an arm keeps allocated between its turns; the rest of the memory
            that is active when its turn begins belongs to the others and does not count.
        rounds: the number of turns of each arm.
    """
    peaks = dict.fromkeys(runs, 0.0)

    def turn(name: str) -> float:
        gc.collect()
        mx.clear_cache()
        others = mx.get_active_memory() - own[name]
        mx.reset_peak_memory()
        seconds = runs[name]()
        peaks[name] = max(peaks[name], mx.get_peak_memory() - others)
        return seconds

    medians = medians_in_turns({name: partial(turn, name) for name in runs}, rounds)
    return {name: Timed(medians[name], peaks[name]) for name in runs}


def prefill(model: nn.Module, tokens: mx.array) -> list:
    """The cache after reading tokens (1, T) as mlx-lm's generate loop does."""
    cache = make_prompt_cache(model)
    for start in range(0, tokens.shape[1], PREFILL_STEP):
        model(tokens[:, start : start + PREFILL_STEP], cache=cache)
        mx.eval([c.state for c in cache])
        mx.clear_cache()
    return cache


def bench_prefill(arms: list[Arm], context: int, rounds: int) -> dict[str, Timed]:
    tokens = mx.random.randint(0, VOCAB_SIZE, (1, context))
    mx.eval(tokens)
    runs = {arm.name: partial(seconds_of, partial(prefill, arm.model, tokens)) for arm in arms}
    rounds *= max(1, 4 * PREFILL_STEP // context)  # short runs vary more
    return in_turns(runs, {a.name: nbytes(a.model.parameters()) for a in arms}, rounds)


def bench_decode(arms: list[Arm], context: int, rounds: int) -> dict[str, Timed]:
    tokens = mx.random.randint(0, VOCAB_SIZE, (1, context))
    caches = {arm.name: prefill(arm.model, tokens) for arm in arms}
    own = {
        arm.name: nbytes(arm.model.parameters()) + sum(c.nbytes for c in caches[arm.name])
        for arm in arms
    }
    runs = {arm.name: partial(decode, arm.model, caches[arm.name], DECODED_TOKENS) for arm in arms}
    return in_turns(runs, own, rounds)


def training_step(model: nn.Module, optimizer: optim.Optimizer) -> Callable[[mx.array], None]:
    """One compiled AdamW step on windows (B, T + 1), as mlx-lm's trainer does it."""

    def loss_fn(model, windows):
        logits = model(windows[:, :-1])
        return nn.losses.cross_entropy(logits, windows[:, 1:], reduction="mean")

    state = [model.state, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(windows):
        loss, gradients = nn.value_and_grad(model, loss_fn)(model, windows)
        optimizer.update(model, gradients)
        return loss

    return lambda windows: mx.eval(step(windows), state)


def bench_training(arms: list[Arm], length: int, rounds: int) -> dict[str, Timed]:
    windows = mx.random.randint(0, VOCAB_SIZE, (TRAINING_BATCH, length + 1))
    mx.eval(windows)
    runs, own = {}, {}
    for arm in arms:
        optimizer = optim.AdamW(1e-4)
        step = training_step(arm.model.train(), optimizer)
        step(windows)  # compiles
        own[arm.name] = nbytes(arm.model.parameters()) + nbytes(optimizer.state)
        runs[arm.name] = partial(seconds_of, partial(step, windows))
    return in_turns(runs, own, rounds)


def with_lora(arms: list[Arm]) -> None:
    """Give the arms low ranks on all linear layers, as mlx-lm's LoRA does, and train only them."""
    for arm in arms:
        arm.model.freeze()
        linear_to_lora_layers(arm.model, -1, {"rank": 8, "scale": 20.0, "dropout": 0.0})
        mx.eval(arm.model.parameters())


def matrix_products(config: dict, length: int) -> Callable[[], None]:
    """Just the d-wide matrix products of FM's blocks on ``length`` tokens, nothing else."""
    args = ModelArgs.from_dict(config)
    hidden, width, rows = args.hidden_size, args.memory_size, args.num_memory_states
    x = mx.random.normal((1, length, hidden))
    weights = [
        mx.random.normal((columns, hidden))
        for columns in (width, rows + 2, args.intermediate_size, args.intermediate_size)
    ]
    z = mx.random.normal((1, length, args.intermediate_size))
    down = mx.random.normal((hidden, args.intermediate_size))
    y = mx.random.normal((1, length, width))
    out = mx.random.normal((hidden, width))
    v = mx.random.normal((1, length // MAX_CHUNK, MAX_CHUNK, width))
    small = mx.random.normal((1, length // MAX_CHUNK, MAX_CHUNK, rows))
    square = mx.random.normal((1, length // MAX_CHUNK, MAX_CHUNK, MAX_CHUNK))
    state = mx.random.normal((1, length // MAX_CHUNK, rows, width))
    mx.eval(x, weights, z, down, y, out, v, small, square, state)

    def block() -> list[mx.array]:
        return [
            *(x @ weight.T for weight in weights),
            z @ down.T,
            y @ out.T,
            v @ v.swapaxes(-1, -2),
            v @ state.swapaxes(-1, -2),
            small.swapaxes(-1, -2) @ v,
            small @ state,
            square @ v,
        ]

    def run() -> None:
        for _ in range(args.num_hidden_layers):
            mx.eval(block())

    return run


def bench_overhead(config: dict, rounds: int) -> dict[str, Timed]:
    """A block stack on 512 tokens with a carried state, and its matrix products alone."""
    model = Model(ModelArgs.from_dict(config))
    mx.eval(model.parameters())
    backbone = model.model
    tokens = mx.random.randint(0, VOCAB_SIZE, (1, PREFILL_STEP))
    cache = prefill(model, tokens)
    carried = [list(c.cache) for c in cache]

    def blocks() -> None:
        for layer_cache, entries in zip(cache, carried, strict=True):
            layer_cache.cache = list(entries)
        mx.eval(backbone(tokens, cache), [c.state for c in cache])

    runs = {
        "blocks": partial(seconds_of, blocks),
        "products": partial(seconds_of, matrix_products(config, PREFILL_STEP)),
    }
    for run in runs.values():
        run()
    return in_turns(runs, dict.fromkeys(runs, 0), rounds)
