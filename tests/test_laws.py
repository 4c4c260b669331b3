"""Laws 1 to 5 and 8 of the design, on the package. Their mutants: test_mutants.py."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
from cases import (
    CANCELLING_TOLERANCE,
    EXTREMES,
    FORMS,
    REAL,
    SCAN_TOLERANCE,
    close,
    extreme,
    loop,
    routed,
    scan,
    steps,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from laws.causality import future_changes_nothing, future_tokens_change_nothing
from laws.growth import graph_does_not_grow, peak_memory, primitives, streaming_is_flat
from laws.padding import (
    model_of_left_padded_rows,
    model_of_right_padded_rows,
    ragged,
    scan_of_ragged_rows,
    steps_of_ragged_rows,
)
from laws.recurrence import (
    an_overwrite_is_a_fresh_start,
    model_is_the_reference,
    scan_is_the_loop,
    steps_are_the_loop,
)
from laws.rows import dense_is_sparse_with_all_rows, rows_have_no_order, sparse_step_is_the_step
from laws.splits import model_may_be_split, scan_may_be_split

forms = pytest.mark.parametrize("form", FORMS)
law = settings(max_examples=12, deadline=None, derandomize=True)


class TestLaw1EverySpellingIsTheLoop:
    @forms
    @pytest.mark.parametrize("chunk_size", [1, 2, 7, 16, 17, 31, 32, None])
    def test_chunk_sizes(self, form, chunk_size):
        scan_is_the_loop(REAL, routed((1, 70, 5, 6), 2), form, chunk_size)

    @forms
    @pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 64, 67])
    def test_tails(self, form, length):
        """A last chunk that is not full (fla #1142 read past it)."""
        scan_is_the_loop(REAL, routed((2, length, 3, 4), 1), form)

    @forms
    @pytest.mark.parametrize("num_active", [1, 3, 8])
    @pytest.mark.parametrize("start", ["empty", "carried"])
    def test_sparse_and_dense(self, form, num_active, start):
        case = routed((3, 100, 8, 16), num_active, empty=start == "empty")
        scan_is_the_loop(REAL, case, form)
        steps_are_the_loop(REAL, case)

    @forms
    def test_an_overwrite_is_a_fresh_start(self, form):
        an_overwrite_is_a_fresh_start(REAL, form, 4 if form == "kernel" else 40)

    @forms
    @pytest.mark.parametrize("kind", EXTREMES)
    def test_extreme_write_weights(self, form, kind):
        """In log space these overflow or give NaN (fla #77, #649)."""
        case = extreme(kind, (2, 100, 3, 4))
        scan_is_the_loop(REAL, case, form)
        steps_are_the_loop(REAL, case)

    @forms
    @pytest.mark.parametrize("shape", [(1, 50, 1, 4), (3, 50, 1, 7), (1, 50, 4, 3)])
    def test_small_shapes(self, form, shape):
        scan_is_the_loop(REAL, routed(shape, 1), form)

    @forms
    @pytest.mark.parametrize("shape", [(1, 640, 3, 1), (2, 40, 1, 1)])
    def test_rows_of_one_column(self, form, shape):
        """The state is right; y loses digits where the only number of a row crosses 0."""
        case = routed(shape, 1)
        scan_is_the_loop(REAL, case, form, tolerance=CANCELLING_TOLERANCE)
        close(scan(REAL, case)[1], loop(case)[1], SCAN_TOLERANCE, "state")

    @forms
    def test_more_chunks_than_one_pass_of_the_state_takes(self, form):
        scan_is_the_loop(REAL, routed((1, 2200, 3, 4), 1), form)
        scan_is_the_loop(REAL, routed((2, 1100, 2, 3), 2), form, chunk_size=1)

    @forms
    @pytest.mark.parametrize("size", [1e-12, 1e-4, 1e4, 1e12])
    def test_sizes_of_values(self, form, size):
        """Row norms make y independent of the size of the values, down to eps."""
        case = routed((2, 70, 4, 6), 2)
        case = replace(
            case,
            values=(case.values * size).astype(np.float32),
            state=(case.state * size).astype(np.float32),
        )
        with REAL.form(form):
            y, state = scan(REAL, case)
        wanted, last = loop(case)
        unit = max(np.abs(wanted).max(), 1e-30)
        close(y / unit, wanted / unit, SCAN_TOLERANCE, "y")
        close(state / size, last / size, SCAN_TOLERANCE, "state")

    @forms
    @pytest.mark.parametrize("eps", [1e-12, 1e-2])
    def test_eps(self, form, eps):
        case = routed((1, 40, 3, 4), 2)
        wanted = loop(case, eps)
        with REAL.form(form):
            close(scan(REAL, case, eps=eps)[0], wanted[0], SCAN_TOLERANCE, "y of the scan")
        close(steps(REAL, case, eps=eps)[0], wanted[0], SCAN_TOLERANCE, "y of the steps")

    @forms
    def test_half_precision_values_keep_a_float32_state(self, form):
        case = routed((1, 70, 3, 4), 2)
        theta, phi, values, state, _ = case.arrays()
        values = values.astype(mx.bfloat16)
        with REAL.form(form):
            y, last = REAL.ops.memory_scan(theta, phi, values, state)
        assert (y.dtype, last.dtype) == (mx.bfloat16, mx.float32)
        rounded = replace(case, values=np.array(values.astype(mx.float32)))
        close(last, loop(rounded)[1], SCAN_TOLERANCE, "state")
        # bf16 keeps 8 bits of y
        close(y.astype(mx.float32), loop(rounded)[0], 2.0**-8, "y")

    @pytest.mark.parametrize("num_active", [1, 2, 7])
    def test_sparse_step(self, num_active):
        sparse_step_is_the_step(REAL, num_active)

    @pytest.mark.parametrize(
        "config",
        [
            {},
            {"tie_word_embeddings": False},
            {"num_active_states": 1},
            {"num_active_states": 6, "affinity_temperature": 1.0},
            {"num_memory_states": 1, "num_active_states": 1},
        ],
        ids=str,
    )
    def test_model(self, config):
        model_is_the_reference(REAL, **config)


C = 8


class TestLaw2ASequenceMayBeSplit:
    @forms
    @pytest.mark.parametrize("length", [1, C - 1, C, C + 1, 2 * C + 3])
    def test_lengths_around_a_chunk(self, form, length):
        case = routed((2, 2 * length + 5, 4, 6), 2)
        scan_may_be_split(REAL, case, [length, length, 5], form, chunk_size=C)

    @forms
    @given(cuts=st.sets(st.integers(1, 59), max_size=5), seed=st.integers(0, 99))
    @law
    def test_anywhere(self, form, cuts, seed):
        edges = [0, *sorted(cuts), 60]
        pieces = [b - a for a, b in pairwise(edges)]
        scan_may_be_split(REAL, routed((1, 60, 3, 4), 1, seed), pieces, form, chunk_size=C)

    @pytest.mark.parametrize("pieces", [[31, 32, 33], [1, 64, 2], [67, *[1] * 8], [1] * 12])
    def test_model_prefilled_in_pieces_then_token_by_token(self, pieces):
        """Without an initial state this cannot work (mlx-recurrence); chunk = step (fla #83)."""
        model_may_be_split(REAL, pieces)

    def test_dense_model(self):
        model_may_be_split(REAL, [40, 1, 1, 9], num_active_states=6)


class TestLaw3ARaggedBatchIsItsRowsAlone:
    """Pads must not decay the state (fla #1272, transformers #48256)."""

    @forms
    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("garbage", [1.0, 1e30, np.inf, np.nan])
    def test_scan(self, form, side, garbage):
        scan_of_ragged_rows(REAL, ragged([30, 8, 1, 17], side, garbage), form)

    @forms
    @given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=2), left=st.booleans())
    @law
    def test_any_lengths(self, form, lengths, left):
        scan_of_ragged_rows(REAL, ragged(lengths, "left" if left else "right", np.nan), form)

    @pytest.mark.parametrize("garbage", [1.0, 1e30, np.inf, np.nan])
    def test_steps(self, garbage):
        steps_of_ragged_rows(REAL, ragged([12, 5, 1], "right", garbage))

    def test_model_right_padded(self):
        model_of_right_padded_rows(REAL)

    def test_model_left_padded(self):
        model_of_left_padded_rows(REAL)


class TestLaw4TheFutureChangesNothing:
    @forms
    @pytest.mark.parametrize("position", [1, 15, 16, 17, 33, 49])
    def test_scan(self, form, position):
        future_changes_nothing(REAL, position, form)

    @pytest.mark.parametrize("position", [1, 32, 50])
    def test_model(self, position):
        future_tokens_change_nothing(REAL, position)


class TestLaw5AllRowsAreTheDenseLayer:
    def test_dense_is_sparse_with_all_rows(self):
        dense_is_sparse_with_all_rows(REAL)

    @pytest.mark.parametrize("num_active", [1, 2, 5])
    @pytest.mark.parametrize("length", [1, 40])
    def test_rows_have_no_order(self, num_active, length):
        rows_have_no_order(REAL, num_active, length)


class TestLaw8NothingGrowsWithTheContext:
    def test_stream_of_a_million_tokens(self):
        growth = streaming_is_flat(REAL, 1_000_000)
        print(f"1,000,000 tokens: peak memory grew by {growth} bytes after 4k")

    @pytest.mark.parametrize("form", ["factored", "portable"])
    def test_graph(self, form):
        """Not of the kernels, which the simulator runs at once: they leave no graph here."""
        graph_does_not_grow(REAL, form)

    def test_count_of_primitives_sees_a_loop(self):
        """The instrument: a loop over time has a graph that grows with time."""
        sizes = []
        for length in (8, 128):
            theta, phi, values, state, _ = routed((1, length, 3, 4), 2).arrays()
            for t in range(length):
                token = [x[:, t : t + 1] for x in (theta, phi, values)]
                y, state = REAL.ops.memory_step(*token, state)
            sizes.append(primitives(y, state))
        assert sizes[1] > 8 * sizes[0]

    def test_training_memory_is_linear(self):
        """Twice the tokens, twice the peak of forward and backward, to a tenth."""

        def loss(*inputs):
            y, state = REAL.ops.memory_scan(*inputs)
            return y.sum() + state.sum()

        # long enough for the state pass to have regrouped its chunks in both
        short, long = (
            peak_memory(
                mx.grad(loss, argnums=(0, 1, 2, 3)), *routed((1, length, 4, 8), 2).arrays()[:4]
            )
            for length in (4096, 8192)
        )
        assert long <= 2.2 * short

    def test_what_is_kept_for_the_backward_is_far_below_a_chunk_cube(self):
        """Bytes a token that each of many stacked scans adds to the peak.

        The scratch of one scan comes once; what a scan keeps until its backward comes with
        every scan. Kept are y (d), P (m), G (C), qA and M (m + C) and the chunk-start states
        (m d / C), float32: 1,150 bytes measured at C = 32, m = 64, d = 8. One C x C x m array per
        chunk would be C m 4 = 8,192 bytes a token; a quarter of that is the bound.
        """
        length, rows, chunk = 1024, 64, 32
        theta, phi, values, _, _ = routed((1, length, rows, 8), 8).arrays()

        def loss(values, depth):
            for _ in range(depth):
                values = values + REAL.ops.memory_scan(theta, phi, values, chunk_size=chunk)[0]
            return values.sum()

        few, many = (peak_memory(mx.grad(loss), values, depth) for depth in (2, 10))
        assert (many - few) / 8 / length < chunk * rows * 4 / 4
