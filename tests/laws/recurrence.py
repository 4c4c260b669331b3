"""Law 1: every spelling computes what the float64 loop computes."""

from __future__ import annotations

import numpy as np
from cases import (
    LOGITS_TOLERANCE,
    SCAN_TOLERANCE,
    Case,
    Code,
    close,
    double,
    loop,
    overwritten,
    routed,
    scan,
    steps,
    tiny_model,
    tokens,
)
from mlx.utils import tree_flatten
from mutant import Mutant

from fm_mlx import reference


def scan_is_the_loop(
    code: Code,
    case: Case,
    form: str = "factored",
    chunk_size: int | None = None,
    tolerance: float = SCAN_TOLERANCE,
) -> float:
    """memory_scan = the float64 loop, outputs and state. Returns the larger error."""
    with code.form(form):
        got = scan(code, case, chunk_size=chunk_size)
    return max(map(close, got, loop(case), [tolerance] * 2, ("y", "state")))


def an_overwrite_is_a_fresh_start(code: Code, form: str = "factored", count: int = 12) -> float:
    """theta = 1 leaves nothing of what a row held, however large that was."""
    errors = [0.0]
    for seed in range(count):
        case = overwritten((1, 33 + 7 * (seed % 3), 1 + seed % 4, 8), seed)
        with code.form(form):
            y, _ = scan(code, case)
        errors.append(close(y, loop(case)[0], SCAN_TOLERANCE, "y"))
    return max(errors)


def steps_are_the_loop(code: Code, case: Case, tolerance: float = SCAN_TOLERANCE) -> float:
    """memory_step, token by token = the float64 loop."""
    return max(map(close, steps(code, case), loop(case), [tolerance] * 2, ("y", "state")))


def model_is_the_reference(code: Code, length: int = 70, **config) -> float:
    """Logits and states of the model = those of the float64 model of the paper."""
    model = tiny_model(code, **config)
    ids = tokens((length,))
    cache = model.make_cache()
    logits = model(ids[None], cache)
    weights = {name: double(np.array(w)) for name, w in tree_flatten(model.parameters())}
    wanted, states = reference.language_model(np.array(ids), weights, vars(model.args))
    for got, state in zip(cache, states, strict=True):
        close(got[0][0], state, LOGITS_TOLERANCE, "state")
    return close(logits[0], wanted, LOGITS_TOLERANCE, "logits")


def scan_law(shape=(2, 40, 3, 4), num_active=2, **kwargs):
    return lambda code: scan_is_the_loop(code, routed(shape, num_active), **kwargs)


MUTANTS = [
    Mutant(
        "law 1",
        "a token finds itself in the memory before it is written",
        scan_law(),
        "ops.chunk_map",
        "_block",
        "mx.tril(gram, -1) @ weight",
        "mx.tril(gram) @ weight",
    ),
    Mutant(
        "law 1",
        "a token is read before it is written",
        scan_law(),
        "ops.chunk_map",
        "_block",
        "mx.tril(read @ weight.swapaxes(-1, -2))",
        "mx.tril(read @ weight.swapaxes(-1, -2), -1)",
    ),
    Mutant(
        "law 1",
        "norms decay once, not twice (portable)",
        scan_law(form="portable"),
        "ops.chunk_map",
        "_portable_forward",
        "mx.where(causal, running * running * gain[:, :, None], 0).sum(axis=3)",
        "mx.where(causal, running * gain[:, :, None], 0).sum(axis=3)",
    ),
    Mutant(
        "law 1",
        "the chunk's norms start from nothing",
        scan_law(),
        "ops.scan",
        "read_chunks",
        "start.square().sum(axis=-1)",
        "0 * start.square().sum(axis=-1)",
    ),
    Mutant(
        "law 1",
        "a write decays by its own weight",
        scan_law(),
        "ops.scan",
        "writes_of_chunks",
        "mx.cumprod(keep, axis=2, reverse=True, inclusive=False)",
        "mx.cumprod(keep, axis=2, reverse=True, inclusive=True)",
    ),
    Mutant(
        "law 1",
        "an overwritten row keeps a share of 1e-9",
        an_overwrite_is_a_fresh_start,
        "ops.chunk_map",
        "_factored_forward",
        "partial(_block, width, eps, DECAY_FLOOR)",
        "partial(_block, width, eps, 1e-9)",
    ),
    Mutant(
        "law 1",
        "the second block begins with what was overwritten in the first",
        an_overwrite_is_a_fresh_start,
        "ops.chunk_map",
        "_two_blocks",
        "keep.prod(axis=2, keepdims=True)",
        "mx.maximum(keep, 1e-9).prod(axis=2, keepdims=True)",
    ),
    Mutant(
        "law 1",
        "groups of chunks start empty",
        scan_law((1, 80, 3, 4), chunk_size=1),
        "ops.state_pass",
        "_pass",
        "starts.flatten(0, 1)",
        "0 * starts.flatten(0, 1)",
    ),
    Mutant(
        "law 1",
        "the step divides by the norm, not by the root mean square",
        lambda code: steps_are_the_loop(code, routed((2, 10, 3, 4), 2)),
        "ops.memory_norm",
        "inverse_rms",
        "squares / width + eps",
        "squares + eps",
    ),
    Mutant(
        "law 1",
        "temperature is forgotten",
        model_is_the_reference,
        "ops.routing",
        "_softmax",
        "logits / temperature",
        "logits",
    ),
    Mutant(
        "law 1",
        "update and merge rate are exchanged",
        model_is_the_reference,
        "ops.routing",
        "_route_dense",
        "(rates[..., :1] * alpha, rates[..., 1:] * alpha)",
        "(rates[..., 1:] * alpha, rates[..., :1] * alpha)",
    ),
]
