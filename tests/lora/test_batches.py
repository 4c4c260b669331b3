"""Batches: every target once, few shapes, an order that can be taken up anywhere."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest
from some_data import some_examples

from fm_mlx.lora import Example
from fm_mlx.lora.batches import KINDS, Batch, Buckets, Packed, Streams, bucket

LENGTHS = [5, 40, 33, 120, 64, 17, 90, 2, 31, 32, 34, 65]


def targets(batches) -> Counter:
    """How often each pair of a token and its target counts."""
    found = Counter()
    for tokens, mask, *_ in batches:
        tokens, mask = np.array(tokens), np.array(mask)
        for row, counts in zip(tokens, mask, strict=True):
            found.update(zip(row[:-1][counts].tolist(), row[1:][counts].tolist(), strict=True))
    return found


def pairs(examples) -> Counter:
    found = Counter()
    for example in examples:
        text = example.tokens.tolist()
        learned = list(pairwise(text))[max(example.offset, 1) - 1 :]
        found.update(learned)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("processes", [1, 2])
def test_every_target_counts_once(kind, processes):
    """Also those behind a prompt, and shared by processes; and padding never (mlx-lm's mask
    counts the first token of it)."""
    examples = some_examples(LENGTHS)
    examples.append(Example(examples[3].tokens[:50], offset=20))
    for seed in (None, 1):
        found = Counter()
        for rank in range(processes):
            rng = None if seed is None else np.random.default_rng(seed)
            batches = KINDS[kind](examples, 4, 128, rank, processes)
            own = [batches.build(batch) for batch in batches.epoch(rng)]
            assert all(len(tokens) == 4 // processes for tokens, *_ in own)
            found += targets(own)
        assert found == pairs(examples)


def same(a: Batch, b: Batch) -> bool:
    """Whether two batches hold the same arrays."""
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None]
    return all(np.array_equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_order_can_be_taken_up_anywhere(kind):
    batches = KINDS[kind](some_examples(LENGTHS), 3, 64)
    whole = list(islice(batches.forever(seed=5), 20))
    for skip in (1, 7, 19):
        for a, b in zip(whole[skip:], batches.forever(seed=5, skip=skip), strict=False):
            assert same(a, b)
    other = next(batches.forever(seed=6))
    assert not same(whole[0], other)


def test_rows_of_like_length_stand_together():
    """The lengths of the tokens decide, not of what they came from (mlx-lm's sort is none)."""
    rng = np.random.default_rng(0)
    examples = some_examples(rng.integers(2, 500, 200))
    batches = Buckets(examples, 4, 512)
    shapes = {tokens.shape for tokens, *_ in batches.once()}
    assert len(shapes) <= 9
    read = sum(tokens[:, 1:].size for tokens, *_ in batches.once())
    assert read < 1.35 * sum(len(example.tokens) for example in examples)


def test_few_lengths():
    assert [bucket(n) for n in (1, 32, 33, 48, 49, 65, 97, 1025)] == [
        32, 32, 48, 48, 64, 96, 128, 1536,
    ]  # fmt: skip


def test_packed_rows_say_where_texts_begin():
    examples = some_examples([30, 20, 50, 10])
    ((tokens, _, starts, _),) = Packed(examples, 1, 128).once()
    assert starts.tolist() == [[30, 50, 100, 128]]
    assert np.array_equal(np.array(tokens)[0, 50:100], examples[2].tokens)


def test_streams_go_on_where_they_were():
    examples = some_examples([100, 30])
    streams = Streams(examples, 2, 32)
    texts = {0: [], 1: []}
    begun = []
    for tokens, mask, _, fresh in streams.once():
        begun.append(np.array(fresh).tolist())
        for row in (0, 1):
            count = int(mask[row].sum().item())
            texts[row] += np.array(tokens)[row, 1 : count + 1].tolist()
    assert texts[0] == examples[0].tokens[1:].tolist()
    assert texts[1] == examples[1].tokens[1:].tolist()
    assert begun == [[True, True], [False, True], [False, True], [False, True]]


def test_one_document_is_cut_for_all_rows():
    streams = Streams(some_examples([1000]), 4, 64)
    first, *_, last = streams.once()
    assert np.array(first[1]).sum(axis=1).tolist() == [64] * 4
    assert np.array(last[1]).any(axis=1).all()
    assert targets(streams.once()) == pairs(some_examples([1000]))
