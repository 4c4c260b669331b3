"""Law 7: two states that take turns give what one gives, branch, save and stay in place."""

from __future__ import annotations

import copy
from itertools import pairwise
from unittest.mock import patch

import mlx.core as mx
import numpy as np
import pytest
from cases import LOGITS_TOLERANCE, REAL, close, same_bits, tiny_model, tokens
from in_step import in_step
from laws.decoding import BUFFERED, buffered_decode_is_the_dense
from mlx_lm.generate import batch_generate, generate_step
from mlx_lm.models.cache import ArraysCache, load_prompt_cache, save_prompt_cache

from fm_mlx import cache as caches
from fm_mlx import ops
from fm_mlx.metal_kernels import launch, simulator


@pytest.fixture(scope="module")
def model():
    return tiny_model(REAL, **BUFFERED)


def decoded(model, cache, first: int, count: int = 12) -> tuple[list[int], np.ndarray]:
    """Greedy tokens from `first` on, one computed ahead, and the last logits."""
    y, ids = mx.array([first]), []
    for _ in range(count):
        logits = model(y[None], cache)[:, -1]
        following = mx.argmax(logits, axis=-1)
        mx.async_eval(following, logits)
        ids.append(y.item())
        y = following
    return ids, np.array(logits)


def prefilled(model, length: int = 30) -> list[ArraysCache]:
    """A cache after a prompt and five tokens."""
    cache = model.make_cache()
    mx.eval(model(tokens((1, length)), cache))
    decoded(model, cache, 3, 5)
    return cache


@pytest.mark.parametrize("masked", [False, True])
def test_is_the_dense_form(masked):
    buffered_decode_is_the_dense(REAL, masked=masked)


@pytest.mark.parametrize("turns", [["ops"], ["simulator"], ["ops", "simulator"]], ids=str)
def test_by_kernels(model, turns):
    """On Metal a step is a write and a launch; the same tokens, who ever made the cache."""
    if "simulator" in turns and (reason := simulator.unavailable()):
        pytest.skip(reason)

    def run(turns):
        with launch.using(turns[0]):
            cache = prefilled(model)
        found, first = [], 7
        for backend in turns * 3:
            with launch.using(backend):
                ids, logits = decoded(model, cache, first, 4)
            found += ids
            first = ids[-1]
        return found, logits

    wanted, logits = run(["ops"] * len(turns))
    ids, got = run(turns)
    assert ids == wanted
    close(got, logits, LOGITS_TOLERANCE, "logits")


def test_a_batch_of_a_running_text_and_one_that_begins(model):
    """By kernels, whose older write has the rows of two tokens: both are as alone."""
    if reason := simulator.unavailable():
        pytest.skip(reason)
    args = model.args
    with launch.using("simulator"):
        running, begun = prefilled(model), model.make_cache()
        for layer in begun:
            state = mx.random.normal((1, args.num_memory_states, args.memory_size))
            caches.set_state(layer, state, args.num_active_states)
        batch = copy.deepcopy(running)
        for layer, other in zip(batch, begun, strict=True):
            layer.extend(other)
        alone = [decoded(model, c, 7)[1] for c in (running, begun)]
        ids = mx.array([[7], [7]])
        for _ in range(12):
            logits = model(ids, batch)[:, -1]
            ids = logits.argmax(axis=-1, keepdims=True)
        for got, wanted in zip(np.array(logits), alone, strict=True):
            close(got[None], wanted, LOGITS_TOLERANCE, "logits")


def test_indices_that_stand_beside_every_number(model):
    """As they were saved before they stood beside every row."""
    cache, other = prefilled(model), prefilled(model)
    for layer in other:
        for at in (caches.OLDER_INDICES, caches.NEWER_INDICES):
            layer[at] = mx.broadcast_to(layer[at][..., None], layer[at + 1].shape)
    for a, b in zip(cache, other, strict=True):
        same_bits(caches.state_of(a), caches.state_of(b), "state")
    wanted, logits = decoded(model, cache, 7)
    ids, got = decoded(model, other, 7)
    assert ids == wanted
    same_bits(got, logits, "logits")


class TestSnapshots:
    """Hold a cache, decode on, come back: bit-equal, and neither disturbs the other."""

    def held(self, how, cache, path):
        if how == "references":
            held = [ArraysCache(len(c.cache)) for c in cache]
            for copied, c in zip(held, cache, strict=True):
                copied.cache = list(c.cache)
            return lambda: held
        if how == "deepcopy":
            held = copy.deepcopy(cache)
            return lambda: held
        save_prompt_cache(str(path / "cache.safetensors"), cache)
        return lambda: load_prompt_cache(str(path / "cache.safetensors"))

    @pytest.mark.parametrize("how", ["references", "deepcopy", "file"])
    @pytest.mark.parametrize("decoded_before", [0, 1, 2, 5])
    def test_continuations_are_bit_equal(self, model, how, decoded_before, tmp_path):
        cache = model.make_cache()
        mx.eval(model(tokens((1, 30)), cache))
        if decoded_before:
            decoded(model, cache, 3, decoded_before)
        back = self.held(how, cache, tmp_path)
        first, logits = decoded(model, cache, 7)
        decoded(model, cache, 9, 4)
        again, logits_again = decoded(model, back(), 7)
        assert again == first
        same_bits(logits_again, logits, "logits")

    def test_row_of_a_batch(self, model):
        """A row that is taken out of a batch goes on as if it had been alone."""
        ids = tokens((3, 20))
        batch = model.make_cache()
        mx.eval(model(ids, batch))
        for t in range(4):
            mx.eval(model(ids[:, t : t + 1], batch))
        row, untouched = [c.extract(1) for c in batch], copy.deepcopy(batch)
        alone = model.make_cache()
        mx.eval(model(ids[1:2], alone))
        for t in range(4):
            mx.eval(model(ids[1:2, t : t + 1], alone))
        got, wanted = decoded(model, row, 5), decoded(model, alone, 5)
        assert got[0] == wanted[0]
        close(got[1], wanted[1], LOGITS_TOLERANCE, "logits")
        same_bits(model(ids[:, 5:6], batch), model(ids[:, 5:6], untouched), "the batch")

    def test_costs_one_copy_of_each_buffer(self, model):
        """Not one per token: the buffers of the branch are its own after two steps."""
        cache = prefilled(model)
        held = [list(c.cache) for c in cache]
        size = sum(c.cache[0].nbytes for c in cache)
        before = mx.get_active_memory()
        growth = []
        for _ in range(6):
            decoded(model, cache, 5, 1)
            mx.eval([c.cache for c in cache])
            growth.append((mx.get_active_memory() - before) / size)
        assert growth[1] == pytest.approx(2, abs=0.1)
        assert max(growth[2:]) == pytest.approx(2, abs=0.1)
        assert held


class TestWithMlxLm:
    def test_generate_step(self, model):
        """mlx-lm's asynchronous loop, against the dense form."""

        def run(cache):
            steps = generate_step(tokens((40,)), model, max_tokens=30, prompt_cache=cache)
            return [token for token, _ in steps]

        dense = [ArraysCache(size=1) for _ in model.layers]
        assert run(model.make_cache()) == run(dense)

    def test_ragged_batches(self, loaded):
        """batch_generate on a model with two buffers, against every prompt alone."""
        small, tokenizer = loaded
        model = tiny_model(REAL, **BUFFERED, vocab_size=small.args.vocab_size)
        prompts = [tokens((n,)).tolist() for n in (3, 30, 11)]
        together = batch_generate(model, tokenizer, prompts, max_tokens=8).texts
        alone = [batch_generate(model, tokenizer, [p], max_tokens=8).texts[0] for p in prompts]
        assert together == alone


class TestInPlace:
    def test_peak_is_two_states(self):
        """Beside the weights: the state twice, and little else."""
        large = tiny_model(REAL, num_memory_states=4096, memory_size=256, num_active_states=8)
        cache = large.make_cache()
        y = mx.array([[3]])
        for _ in range(3):
            mx.eval(large(y, cache), [c.cache for c in cache])
        state = 4096 * 256 * 4 * len(cache)
        held = mx.get_active_memory()
        mx.reset_peak_memory()
        with in_step():
            decoded(large, cache, 5, 50)
        grown = mx.get_peak_memory() - held
        assert grown < 0.05 * state, grown
        assert mx.get_active_memory() - held < 0.01 * state

    @pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
    def test_nothing_grows(self, model, count):
        cache = prefilled(model)
        sizes = []
        for _ in range(4):
            decoded(model, cache, 5, count // 4)
            mx.eval([c.cache for c in cache])
            sizes.append(mx.get_active_memory())
        assert all(abs(a - b) < 10_000 for a, b in pairwise(sizes)), sizes


@pytest.mark.parametrize(
    ("shape", "entries"),
    [((64, 8, 256), 1), ((64, 8, 2048), 6), ((4096, 8, 256), 6), ((4096, 4096, 256), 1)],
)
def test_form_goes_by_shape(shape, entries):
    assert caches.cache_entries(*shape) == entries


class TestActiveRowsOfOneState:
    """Where texts are many, or a few of many rows active, a token touches these alone."""

    def decode(self, masked: bool, count: int = 20):
        """Logits and states of four texts."""
        model = tiny_model(REAL, num_memory_states=400, num_active_states=3)
        ids = tokens((4, count))
        cache = model.make_cache()
        assert [len(layer.cache) for layer in cache] == [1, 1]
        for layer in cache if masked else ():
            layer.prepare(lengths=[count, 7, count, 3])
        logits = [model(ids[:, t : t + 1], cache) for t in range(count)]
        return mx.concatenate(logits, axis=1), [layer[0] for layer in cache]

    @pytest.mark.parametrize("masked", [False, True])
    def test_is_the_step_on_all_rows(self, masked):
        with patch.object(ops, "sparse_memory_step", side_effect=ops.sparse_memory_step) as step:
            got, states = self.decode(masked)
        assert step.called
        with patch.object(ops, "sparse_step_is_faster", return_value=False):
            wanted, of_all = self.decode(masked)
        close(got, wanted, LOGITS_TOLERANCE, "logits")
        for a, b in zip(states, of_all, strict=True):
            close(a, b, LOGITS_TOLERANCE, "state")

    @pytest.mark.parametrize(
        ("sizes", "faster"),
        [
            ((1, 64, 8, 256), False),  # one text, few rows
            ((8, 64, 8, 256), True),
            ((1, 128, 8, 256), True),
            ((32, 64, 16, 256), False),  # a quarter of the rows, as many texts as there may be
        ],
    )
    def test_rule(self, sizes, faster):
        assert ops.sparse_step_is_faster(*sizes) == faster
