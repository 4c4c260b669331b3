"""``fm-mlx profile``: where the time of a model goes, part by part, on this device.

A part is timed alone, all its layers together, on inputs of the right shape. What they
leave of the whole step is what lies between them. Beside each stands a bound: the bytes and
operations that it cannot do without, at the speeds of a copy and a matrix product here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_reduce
from tqdm import tqdm

from fm_mlx.cli_types import whole
from fm_mlx.loading import load
from fm_mlx.metal_kernels.cost import Cost
from fm_mlx.model import Model
from fm_mlx.tables import aligned
from fm_mlx.timing import decode, device_line, medians_in_turns, seconds_of, started_caches
from fm_mlx.work import scan_work, update_work

_DECODED = 32
# Tokens of a part that are evaluated together in decode, so that handing them over does not
# count; in the whole step that happens while the token before is computed.
_TOGETHER = 8
_FLOAT = 4


@dataclass(frozen=True)
class Part:
    """A part of the model on some tokens: how to run it, and what it must do at least."""

    name: str
    run: Callable[[], list[mx.array]]
    work: Cost


@dataclass(frozen=True)
class Speeds:
    """Of this device: bytes and operations a second."""

    bandwidth: float
    arithmetic: float

    def bound(self, work: Cost) -> float:
        """The least seconds for it."""
        return max(work.least_bytes / self.bandwidth, work.flops / self.arithmetic)


def measure_speeds(size: int, dtype: mx.Dtype) -> Speeds:
    """What a copy of `size` bytes and a matrix product reach."""
    numbers = mx.zeros((size // _FLOAT,))
    square = mx.ones((512, 512), dtype)
    mx.eval(numbers, square)
    runs = {
        "copy": partial(seconds_of, lambda: mx.eval(-numbers)),
        "product": partial(seconds_of, lambda: mx.eval(square @ square)),
    }
    seconds = medians_in_turns(runs, 9)
    return Speeds(2 * numbers.nbytes / seconds["copy"], 2 * 512**3 / seconds["product"])


def parts(model: Model, tokens: int) -> list[Part]:
    """The parts of a model that reads `tokens` (prefill), or decodes one."""
    args, layers = model.args, model.layers
    caches = started_caches(model)
    hidden = mx.random.normal((1, tokens, args.hidden_size)).astype(_dtype(model))
    values = mx.random.normal((1, tokens, args.memory_size)).astype(hidden.dtype)
    weights = [block.memory.route(hidden, c) for block, c in zip(layers, caches, strict=True)]
    mx.eval(hidden, values, weights)
    item, norms = hidden.dtype.size, 2 * len(layers) + 1
    sparse = len(weights[0]) == 3

    def norm():
        of_blocks = [n(hidden, hidden) for b in layers for n in (b.memory_norm, b.mlp_norm)]
        return [*of_blocks, model.model.norm(hidden, hidden)]

    def projections():
        return [x for b in layers for x in (b.memory.in_proj(hidden), b.memory.out_proj(values))]

    def router():
        return [b.memory.route(hidden, c) for b, c in zip(layers, caches, strict=True)]

    def remember():
        together = zip(layers, weights, caches, strict=True)
        return [b.memory.remember(w, values, None, c) for b, w, c in together]

    def mlp():
        return [b.mlp(hidden) for b in layers]

    def head():
        return [model.logits(hidden)]

    wide, narrow = hidden.nbytes, values.nbytes
    chosen = sum(w.nbytes for w in weights[0])
    work = update_work(args, 1, sparse=sparse) if tokens == 1 else scan_work(args, tokens)
    modules = [b.memory for b in layers]
    built = [
        Part("norm", norm, _moves(norms * 4 * wide) + Cost(0, 0, norms * 5 * hidden.size)),
        Part(
            "projections",
            projections,
            _products([p for m in modules for p in (m.in_proj, m.out_proj)], tokens)
            + _moves(2 * len(layers) * (wide + narrow)),
        ),
        Part(
            "router",
            router,
            _products([m.router for m in modules], tokens) + _moves(len(layers) * (wide + chosen)),
        ),
        Part("memory", remember, work * len(layers)),
        Part(
            "MLP", mlp, _products([b.mlp for b in layers], tokens) + _moves(2 * len(layers) * wide)
        ),
    ]
    if tokens == 1:
        tied = args.tie_word_embeddings
        table = model.model.embed_tokens if tied else model.lm_head
        built.append(Part("head", head, _products([table], 1) + _moves(item * args.vocab_size)))
    return built


def _moves(size: int) -> Cost:
    return Cost(size, size, 0)


def _products(modules: list[nn.Module], tokens: int) -> Cost:
    """Reading the weights once, and two operations a weight and token."""
    size = sum(_nbytes(module) for module in modules)
    return Cost(size, size, 2 * tokens * sum(_weights(module) for module in modules))


def _nbytes(module: nn.Module) -> int:
    return tree_reduce(lambda total, x: total + x.nbytes, module.parameters(), 0)


def _weights(module: nn.Module) -> int:
    """Weights of all matrices, quantised or not."""
    total = 0
    for _, leaf in module.named_modules():
        weight = leaf.get("weight")
        if weight is not None:
            total += weight.size * 32 // leaf.bits if hasattr(leaf, "bits") else weight.size
    return total


def _dtype(model: Model) -> mx.Dtype:
    """Of the activations."""
    return model.model.embed_tokens(mx.array([0])).dtype


def profile(model: Model, tokens: int, rounds: int) -> tuple[dict[str, float], float]:
    """Seconds of the parts and of the whole, for a prompt of `tokens` or one decoded token.

    The whole of a prompt is all blocks and the last norm: it needs no head.
    """
    together = _TOGETHER if tokens == 1 else 1
    runs = {
        part.name: partial(
            seconds_of, partial(lambda run: mx.eval([run() for _ in range(together)]), part.run)
        )
        for part in parts(model, tokens)
    }
    caches = started_caches(model)
    if tokens == 1:
        runs["whole"] = partial(decode, model, caches, _DECODED)
    else:
        prompt = mx.zeros((1, tokens), mx.int32)
        runs["whole"] = partial(
            seconds_of, lambda: mx.eval(model.model(prompt, caches), [c.state for c in caches])
        )
    for run in runs.values():
        run()  # compiles
    seconds = medians_in_turns(runs, rounds)
    whole_step = seconds.pop("whole")
    return {name: taken / together for name, taken in seconds.items()}, whole_step


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``fm-mlx profile``."""
    parser.add_argument(
        "--model", help="a model folder or Hugging Face repository; default: the packaged model"
    )
    parser.add_argument(
        "--prompt-tokens", type=whole(2), default=512, help="tokens of prefill (default 512)"
    )
    parser.add_argument(
        "--rounds", type=whole(1), default=20, help="times that every part runs (default 20)"
    )


def run(args: argparse.Namespace) -> int:
    """Print a table for prefill and one for decode."""
    model, _ = load(args.model)
    size = _nbytes(model)
    progress = tqdm(total=3, disable=not sys.stderr.isatty(), unit="table")
    speeds = measure_speeds(min(max(size, 1 << 20), 1 << 28), _dtype(model))
    progress.update()
    tables = []
    for tokens in (args.prompt_tokens, 1):
        tables.append(_table(model, tokens, args.rounds, speeds))
        progress.update()
    progress.close()
    print(
        f"{device_line()}; {_dtype(model)}, {size / 1e6:,.1f} MB of weights".replace(
            "mlx.core.", ""
        )
    )
    print(
        f"bounds: {speeds.bandwidth / 1e9:,.1f} GB/s (a copy of as many bytes) and "
        f"{speeds.arithmetic / 1e9:,.0f} GFLOP/s (a matrix product), measured here"
    )
    for title, lines in zip(
        (f"prefill, {args.prompt_tokens} tokens", "decode"), tables, strict=True
    ):
        print(f"\n{title}, us a token\n" + "\n".join(lines))
    return 0


def _table(model: Model, tokens: int, rounds: int, speeds: Speeds) -> list[str]:
    seconds, whole_step = profile(model, tokens, rounds)
    rows = [["part", "time", "share", "bytes", "bound"]]

    def row(name: str, taken: float, work: Cost | None) -> None:
        costs = ["", ""]
        if work is not None:
            bound = speeds.bound(work) / tokens * 1e6
            costs = [f"{work.least_bytes / tokens:,.0f}", f"{bound:,.1f}"]
        share = f"{taken / whole_step:.0%}"
        rows.append([name, f"{taken / tokens * 1e6:,.1f}", share, *costs])

    for part in parts(model, tokens):
        row(part.name, seconds[part.name], part.work)
    row("between", whole_step - sum(seconds.values()), None)
    row("whole", whole_step, None)
    return aligned(rows)
