"""Broken copies of the package, each of which a law must catch.

A mutant is one expression replaced in one function, found by its structure (structural.py):
renamed variables and another layout do not break it. The package is imported anew with that
source; the one that is already imported stays as it is. A pattern that matches nothing, or
more than once, is an error: a mutant must not stop being applied unseen.

``python tests/mutants.py`` prints the table of mutants, laws and what was found.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from types import ModuleType

import laws
import mlx.core as mx
import numpy as np
import product_law
import sparse_scan_law
from cases import Code, routed
from mlx_lm.convert import mixed_quant_predicate_builder
from reset_law import nothing_leaks, packed_is_separate
from structural import prefixed, replaced

import fm_mlx

PACKAGE = "fm_mlx"


class _OneModule(MetaPathFinder, Loader):
    """Finds one module of the package, with other source."""

    def __init__(self, name: str, path: Path, source: str):
        self.name, self.path, self.source = name, path, source

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.source, str(self.path), "exec"), vars(module))


def mutated(module: str, function: str, old: str | None, new: str) -> Code:
    """The package with `old` replaced by `new` in a function of ``fm_mlx.<module>``.

    Without `old`, the statements `new` are put before the function's first one.

    Raises:
        ValueError: if `old` does not match exactly once.
    """
    path = Path(fm_mlx.__path__[0], *module.split(".")).with_suffix(".py")
    source = path.read_text()
    if old is None:
        source = prefixed(source, function, new)
    else:
        source = replaced(source, function, old, new)
    ours = {n: m for n, m in sys.modules.items() if n.split(".")[0] == PACKAGE}
    for name in ours:
        del sys.modules[name]
    # the package without its __init__, which would register with mlx-lm a second time
    sys.modules[PACKAGE] = package = ModuleType(PACKAGE)
    package.__path__ = fm_mlx.__path__
    finder = _OneModule(f"{PACKAGE}.{module}", path, source)
    sys.meta_path.insert(0, finder)
    try:
        return Code.imported()
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n in sys.modules if n.split(".")[0] == PACKAGE]:
            del sys.modules[name]
        sys.modules.update(ours)


@dataclass(frozen=True)
class Mutant:
    law: str
    name: str
    check: Callable[[Code], object]
    module: str
    function: str
    old: str | None
    new: str

    def __str__(self) -> str:
        return f"{self.law}: {self.name}"

    def found(self) -> str | None:
        """What the check says of the mutant, None if nothing."""
        try:
            self.check(mutated(self.module, self.function, self.old, self.new))
        except AssertionError as error:
            return (str(error) or "assertion failed").splitlines()[0]
        return None


def scan_law(shape=(2, 40, 3, 4), num_active=2, **kwargs):
    return lambda code: laws.scan_is_the_loop(code, routed(shape, num_active), **kwargs)


def gradient_law(form="factored"):
    return lambda code: laws.gradients_are_the_loops(code, routed((2, 10, 4, 3), 2), form, 4)


def ragged_scan(code):
    laws.scan_of_ragged_rows(code, laws.ragged([30, 8, 1, 17], "right", 1.0))


def ragged_steps(code):
    laws.steps_of_ragged_rows(code, laws.ragged([12, 5, 1], "right", 1.0))


def split_scan(code):
    laws.scan_may_be_split(code, routed((1, 60, 3, 4), 1), [25, 7, 28])


def mixed_recipe(code):
    recipe = partial(mixed_quant_predicate_builder, "mixed_3_6", group_size=32)
    laws.quantising_keeps_precision(code, recipe, group_size=32, bits=4)


def casting(code):
    laws.casting_keeps_precision(code, mx.bfloat16)


def routing(code):
    logits = mx.random.normal((50, 9), key=mx.random.key(0))
    for num_active in (3, 8, 9):
        laws.routing_is_the_affinity(code, np.array(logits), num_active, 0.5)


def routing_of_ties(code):
    laws.routing_is_the_affinity(code, np.zeros((2, 9), "float32"), 4)


def routing_by_keys(code):
    with laws.not_on_the_cpu(code):
        routing(code)
        routing_of_ties(code)


A_LOOP_OVER_CHUNKS = """
states = [state]
for n in range(increment.shape[1]):
    states.append(decay[:, n, :, None] * states[-1] + increment[:, n])
return mx.stack(states[:-1], axis=1), states[-1]
"""

A_MASK_FOR_WRITES = """
if mask is not None:
    theta, values = (mx.where(mask[..., None], x, 0) for x in (theta, values))
    mask = None
"""

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
        laws.an_overwrite_is_a_fresh_start,
        "ops.chunk_map",
        "_factored_forward",
        "partial(_block, width, eps, DECAY_FLOOR)",
        "partial(_block, width, eps, 1e-9)",
    ),
    Mutant(
        "law 1",
        "the second block begins with what was overwritten in the first",
        laws.an_overwrite_is_a_fresh_start,
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
        lambda code: laws.steps_are_the_loop(code, routed((2, 10, 3, 4), 2)),
        "ops.memory_norm",
        "inverse_rms",
        "squares / width + eps",
        "squares + eps",
    ),
    Mutant(
        "law 1",
        "temperature is forgotten",
        laws.model_is_the_reference,
        "ops.routing",
        "_softmax",
        "logits / temperature",
        "logits",
    ),
    Mutant(
        "law 1",
        "update and merge rate are exchanged",
        laws.model_is_the_reference,
        "ops.routing",
        "_route_dense",
        "(rates[..., :1] * alpha, rates[..., 1:] * alpha)",
        "(rates[..., 1:] * alpha, rates[..., :1] * alpha)",
    ),
    Mutant(
        "law 1",
        "slots that repeat a row hold what it held before",
        sparse_scan_law.many_groups,
        "ops.sparse_scan",
        "_Slots.of",
        "mx.where(number <= slot[..., -1:], number, 0)",
        "mx.broadcast_to(number, slot.shape)",
    ),
    Mutant(
        "law 1",
        "a group of chunks brings back what slots held before",
        sparse_scan_law.many_groups,
        "ops.sparse_scan",
        "_pass",
        "written(state, Write(own_rows, _rows_of(own, source)))",
        "written(state, Write(own_rows, own))",
    ),
    Mutant(
        "law 3",
        "the sparse scan ignores the mask",
        sparse_scan_law.masked,
        "ops.sparse_scan",
        "sparse_memory_scan",
        "split_into_chunks(x, chunk, mask)",
        "split_into_chunks(x, chunk, None)",
    ),
    Mutant(
        "law 5",
        "blocks of rows are taken in the order of their logits",
        lambda code: sparse_scan_law.routing_by_blocks(
            code, sparse_scan_law.few_values((40, 700)), 3
        ),
        "ops.routing",
        "_by_blocks",
        "mx.sort(choose(largest, num_active).astype(mx.int32), axis=-1)",
        "choose(largest, num_active).astype(mx.int32)[..., ::-1]",
    ),
    Mutant(
        "law 6",
        "groups of chunks are passed over forwards for the gradient",
        sparse_scan_law.gradients_of_many_groups,
        "ops.sparse_scan",
        "_pass",
        "_pass(places, *inputs, _rows_of(state, own_rows), reverse)",
        "_pass(places, *inputs, _rows_of(state, own_rows))",
    ),
    Mutant(
        "law 2",
        "the state given to the scan is ignored",
        split_scan,
        "ops.scan",
        "memory_scan",
        "state.astype(mx.float32)",
        "mx.zeros_like(state)",
    ),
    Mutant(
        "law 2",
        "the state returned is that before the last chunk",
        split_scan,
        "ops.scan",
        "memory_scan",
        "(y.astype(values.dtype), last)",
        "(y.astype(values.dtype), start[:, -1])",
    ),
    Mutant(
        "law 2",
        "the cache is not written",
        lambda code: laws.model_may_be_split(code, [33, 1, 5]),
        "cache",
        "set_state",
        None,
        "return",
    ),
    Mutant(
        "law 3",
        "the scan ignores the mask",
        ragged_scan,
        "ops.scan",
        "split_into_chunks",
        "mx.where(mask[..., None], x, 0)",
        "x",
    ),
    Mutant(
        "law 3",
        "the step ignores the mask",
        ragged_steps,
        "ops.step",
        "_masked",
        "mask is None",
        "True",
    ),
    Mutant(
        "law 3",
        "pads are read, not written",
        ragged_scan,
        "ops.scan",
        "memory_scan",
        None,
        A_MASK_FOR_WRITES,
    ),
    Mutant(
        "law 3",
        "the model asks the cache for no mask (right padding)",
        laws.model_of_right_padded_rows,
        "model",
        "Backbone.__call__",
        "create_ssm_mask(x, cache)",
        "None",
    ),
    Mutant(
        "law 3",
        "the model asks the cache for no mask (left padding)",
        laws.model_of_left_padded_rows,
        "model",
        "Backbone.__call__",
        "create_ssm_mask(x, cache)",
        "None",
    ),
    Mutant(
        "law 3",
        "the cache is not told how far the batch is",
        laws.model_of_right_padded_rows,
        "layer",
        "FactorizationMemory.recurrence",
        "cache.advance(length)",
        "cache.advance(0)",
    ),
    Mutant(
        "law 4",
        "tokens read what comes after them in the chunk",
        lambda code: laws.future_changes_nothing(code, 17),
        "ops.chunk_map",
        "_block",
        "mx.tril(read @ weight.swapaxes(-1, -2))",
        "read @ weight.swapaxes(-1, -2)",
    ),
    Mutant(
        "law 4",
        "norms know what comes after them in the chunk",
        lambda code: laws.future_changes_nothing(code, 17),
        "ops.chunk_map",
        "_block",
        "mx.tril(gram, -1) @ weight",
        "gram @ weight",
    ),
    Mutant(
        "law 4",
        "no triangle in the weights (portable)",
        lambda code: laws.future_changes_nothing(code, 17, "portable"),
        "ops.chunk_map",
        "_portable_forward",
        "mx.tril(mx.ones((chunk, chunk), dtype=mx.bool_))",
        "mx.ones((chunk, chunk), dtype=mx.bool_)",
    ),
    *(
        Mutant(
            "law 5",
            f"the k best are not renormalised ({function})",
            routing,
            "ops.routing",
            function,
            "_softmax(mx.take_along_axis(logits, indices, axis=-1), temperature)",
            "mx.take_along_axis(_softmax(logits, temperature), indices, axis=-1)",
        )
        for function in ("_by_logits", "_route_dense")
    ),
    Mutant(
        "law 5",
        "the k best but one more, without the best",
        routing_by_keys,
        "ops.routing",
        "_by_unique_keys",
        "mx.partition(_unique_keys(logits), rest, axis=-1)[..., rest:]",
        "mx.partition(_unique_keys(logits), rest, axis=-1)[..., rest - 1 : -1]",
    ),
    Mutant(
        "law 5",
        "ties go to the highest index",
        routing_of_ties,
        "ops.routing",
        "_by_partition",
        "mx.argpartition(-logits, num_active - 1, axis=-1)[..., :num_active]",
        "mx.argpartition(logits, -num_active, axis=-1)[..., -num_active:]",
    ),
    Mutant(
        "law 5",
        "ties go to the highest index (keys)",
        routing_by_keys,
        "ops.routing",
        "_unique_keys",
        "mx.arange(logits.shape[-1] - 1, -1, -1)",
        "mx.arange(logits.shape[-1])",
    ),
    Mutant(
        "law 3",
        "a compiled token forgets the padding",
        partial(laws.token_step_is_the_forward_pass, batch=3, left_padding=[0, 14, 13]),
        "token_step",
        "TokenStep.__call__",
        "self._step(model, tokens, entries, mask)",
        "self._step(model, tokens, entries, None)",
    ),
    Mutant(
        "law 3",
        "a compiled token does not count itself",
        partial(laws.token_step_is_the_forward_pass, batch=3, left_padding=[0, 14, 13]),
        "token_step",
        "TokenStep.__call__",
        "layer_cache.advance(1)",
        "None",
    ),
    Mutant(
        "law 5",
        "k = m keeps one row fewer",
        laws.dense_is_sparse_with_all_rows,
        "layer",
        "FactorizationMemory.route",
        "route(scores, self.num_active_states, self.affinity_temperature, self.product_keys)",
        "route(scores, self.num_active_states - 1, self.affinity_temperature, self.product_keys)",
    ),
    Mutant(
        "law 5",
        "rates are read from the first rows of the router",
        lambda code: laws.rows_have_no_order(code, 2),
        "ops.routing",
        "_logits_and_rates",
        "routing[..., -2:]",
        "routing[..., :2]",
    ),
    Mutant(
        "law 5",
        "the sparse step adds where it should replace",
        lambda code: laws.sparse_step_is_the_step(code, 2),
        "ops.step",
        "written",
        "mx.put_along_axis(state, own, rows, axis=1)",
        "state + mx.put_along_axis(mx.zeros_like(state), own, rows, axis=1)",
    ),
    Mutant(
        "law 6",
        "no gradient through the decay of what is read",
        gradient_law(),
        "ops.chunk_map",
        "_factored_backward",
        "d_read * read + d_inner * inner - d_weight * weight",
        "d_inner * inner - d_weight * weight",
    ),
    Mutant(
        "law 6",
        "no gradient through the decay inside the norms",
        gradient_law(),
        "ops.chunk_map",
        "_factored_backward",
        "d_read * read + d_inner * inner - d_weight * weight",
        "d_read * read - d_weight * weight",
    ),
    Mutant(
        "law 6",
        "no gradient through what the norms keep",
        gradient_law(),
        "ops.chunk_map",
        "_factored_backward",
        "d_keep + 2 * keep * d_gain * norm_before",
        "d_keep",
    ),
    Mutant(
        "law 6",
        "no gradient of the norms at the chunk's start",
        gradient_law(),
        "ops.chunk_map",
        "_factored_backward",
        "d_norm0.squeeze(2)",
        "0 * d_norm0.squeeze(2)",
    ),
    Mutant(
        "law 6",
        "no gradient through the diagonal of G",
        gradient_law(),
        "ops.chunk_map",
        "_factored_backward",
        "mx.eye(size) * diagonal",
        "0 * diagonal",
    ),
    Mutant(
        "law 6",
        "no gradient through the norms (portable)",
        gradient_law("portable"),
        "ops.chunk_map",
        "_portable_forward",
        "phi * inverse_rms(mx.maximum(norm, 0), width, eps)",
        "phi * mx.stop_gradient(inverse_rms(mx.maximum(norm, 0), width, eps))",
    ),
    Mutant(
        "law 6",
        "the gradient of the last state is dropped",
        laws.final_state_gradient_is_kept,
        "ops.state_pass",
        "_state_pass_vjp",
        "_pass(decay, d_starts, d_last, reverse=True)",
        "_pass(decay, d_starts, mx.zeros_like(d_last), reverse=True)",
    ),
    Mutant(
        "law 6",
        "no gradient through the decay of chunks",
        gradient_law(),
        "ops.state_pass",
        "_state_pass_vjp",
        "(d_increment * starts).sum(axis=-1)",
        "0 * (d_increment * starts).sum(axis=-1)",
    ),
    Mutant(
        "law 6",
        "the sum of the k best is a constant",
        lambda code: laws.routing_gradient_is_the_affinitys(code, 2, 1.0),
        "ops.routing",
        "_by_logits",
        "_softmax(mx.take_along_axis(logits, indices, axis=-1), temperature)",
        "(lambda e: e / mx.stop_gradient(e.sum(axis=-1, keepdims=True)))"
        "(mx.exp(mx.take_along_axis(logits, indices, axis=-1) / temperature))",
    ),
    Mutant(
        "law 6",
        "silu's slope is the sigmoid",
        laws.swiglu_is_mlx_lms,
        "ops.block",
        "_swiglu_vjp",
        "sigmoid + silu * (1 - sigmoid)",
        "sigmoid",
    ),
    Mutant(
        "product keys",
        "the best of a half are not put in order",
        lambda code: product_law.choice_is_that_among_all_rows(code, 40, 7),
        "ops.routing",
        "_route_by_product",
        "mx.sort(best.astype(mx.int32), axis=-1)",
        "best.astype(mx.int32)",
    ),
    Mutant(
        "product keys",
        "one row of a half is left out",
        lambda code: product_law.choice_is_that_among_all_rows(code, 40, 7),
        "ops.routing",
        "_route_by_product",
        "min(num_active, both // 2)",
        "min(num_active - 1, both // 2)",
    ),
    Mutant(
        "law 7",
        "a buffer misses the rows of the step before the last",
        laws.buffered_decode_is_the_dense,
        "ops.step",
        "_compiled_buffered_step",
        "written(state, Write(*older), Write(*newer))",
        "written(state, Write(*newer))",
    ),
    Mutant(
        "law 7",
        "the rows that wait are not in the whole state",
        laws.buffered_decode_is_the_dense,
        "cache",
        "state_of",
        "written(cache[behind], _write(cache[indices], cache[rows]))",
        "cache[behind]",
    ),
    Mutant(
        "law 7",
        "one buffer stays behind",
        laws.buffered_decode_is_the_dense,
        "cache",
        "step",
        "[behind, state, *older, *newer]",
        "[state, behind, *older, *newer]",
    ),
    Mutant(
        "law 7",
        "a row that two tokens write is as the first one left it",
        laws.writes_have_no_order,
        "ops.step",
        "_sparse_update",
        "mx.where(place > 0, as_now, last.rows)",
        "last.rows",
    ),
    Mutant(
        "law 8",
        "the cache keeps what was read",
        lambda code: laws.streaming_is_flat(code, 100_000),
        "layer",
        "FactorizationMemory.recurrence",
        "cache.advance(length)",
        "(cache.advance(length), cache.__dict__.setdefault('history', []).append(y))",
    ),
    Mutant(
        "law 8",
        "a loop over chunks in the graph",
        laws.graph_does_not_grow,
        "ops.state_pass",
        "_pass",
        None,
        A_LOOP_OVER_CHUNKS,
    ),
    Mutant(
        "law 10",
        "the router is a linear layer (quantised)",
        mixed_recipe,
        "layer",
        "FactorizationMemory.__init__",
        "Router(hidden_size, num_logits)",
        "nn.Linear(hidden_size, num_logits + 2, bias=False)",
    ),
    Mutant(
        "law 10",
        "the router is a linear layer (LoRA)",
        laws.lora_leaves_the_router_alone,
        "layer",
        "FactorizationMemory.__init__",
        "Router(hidden_size, num_logits)",
        "nn.Linear(hidden_size, num_logits + 2, bias=False)",
    ),
    Mutant(
        "law 10",
        "the router may be cast",
        casting,
        "precision",
        "stays_float32",
        '("router.weight", "norm.weight")',
        '("norm.weight",)',
    ),
    Mutant(
        "law 10",
        "the state is kept in the dtype of the weights",
        casting,
        "cache",
        "set_state",
        None,
        "state = state.astype(mx.bfloat16)",
    ),
    Mutant(
        "law 10",
        "the state is kept in the dtype of the weights (drift)",
        laws.bf16_decode_does_not_drift,
        "layer",
        "FactorizationMemory._on_whole_state",
        "ops.memory_step(theta, phi, values, state, mask, eps=self.eps)",
        "(lambda y, last: (y, last.astype(values.dtype)))"
        "(*ops.memory_step(theta, phi, values, state, mask, eps=self.eps))",
    ),
    Mutant(
        "law 10",
        "float32 norms widen the logits",
        casting,
        "model",
        "RMSNorm.__call__",
        "super().__call__(x).astype(x.dtype)",
        "super().__call__(x)",
    ),
    Mutant(
        "resets",
        "the memory decays as ever where it is reset",
        packed_is_separate,
        "ops.resets",
        "Segments.reset",
        "mx.where(next_begins[..., None], 0, decay)",
        "decay",
    ),
    Mutant(
        "resets",
        "a reset leaves what the chunk wrote",
        nothing_leaks,
        "ops.resets",
        "Segments.reset",
        "mx.where(next_begins[..., None, None], fresh[:, None], increment)",
        "increment",
    ),
    Mutant(
        "resets",
        "a reset at the first token is forgotten",
        packed_is_separate,
        "ops.resets",
        "Segments.reset",
        "mx.where(begins[:, :1, None], fresh, state)",
        "state",
    ),
    Mutant(
        "resets",
        "a text begins one token late",
        nothing_leaks,
        "ops.resets",
        "Segments.__init__",
        "(token[None, :, None] >= first[:, None, 1:])",
        "(token[None, :, None] > first[:, None, 1:])",
    ),
    Mutant(
        "resets",
        "resets that are none reset",
        packed_is_separate,
        "ops.resets",
        "Segments.__init__",
        "chunks[:, None, 1:] > 0",
        "chunks[:, None, 1:] >= 0",
    ),
]


if __name__ == "__main__":
    for mutant in MUTANTS:
        print(f"{mutant!s:75} {mutant.found() or 'NOT FOUND'}")
