"""Drafts of models and of the text itself change nothing of what is written."""

from __future__ import annotations

import mlx.core as mx
import pytest
from cases import tokens
from drafted import VOCAB, assert_same, drafted, llama_model, model_with_a_head, noisy

from fm_mlx.drafting import ModelDrafter, PromptLookup


@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_draft_model_that_is_the_model_is_always_right(generated, model, count):
    plain = generated(model)
    assert len({r.token for r in plain}) > 5
    found = generated(model, draft_model=model, num_draft_tokens=count)
    assert_same(found, plain)
    passes = -(-24 // (count + 1))
    assert drafted(found) == 24 - passes
    assert [r.from_draft for r in found[: count + 1]] == [True] * count + [False]


def test_a_draft_model_that_is_always_wrong(generated, model):
    stranger = model_with_a_head(seed=9, num_hidden_layers=1)
    found = generated(model, draft_model=stranger)
    assert_same(found, generated(model))
    assert drafted(found) <= 2


@pytest.mark.parametrize("count", [1, 4])
def test_a_draft_model_that_is_right_now_and_then(generated, model, count):
    right = 0
    for seed in range(4):
        options = {"draft_model": noisy(model, 0.2), "num_draft_tokens": count}
        found = generated(model, 40, seed=seed, **options)
        assert_same(found, generated(model, 40, seed=seed))
        right += drafted(found)
    assert 20 < right < 4 * (40 - 40 // (count + 1))


def test_a_llama_drafts(generated, model):
    found = generated(model, draft_model=llama_model())
    assert_same(found, generated(model))


@pytest.mark.parametrize("kind", ["recurrent", "trimmed"])
def test_a_drafter_that_went_back_drafts_like_a_new_one(small, kind):
    """However many of its drafts were right."""
    model = small if kind == "recurrent" else llama_model()
    drafter = ModelDrafter(model, VOCAB)
    text = tokens((30,)).tolist()
    drafter.read(text)
    added = [7]
    for count, right in [(4, 0), (4, 2), (4, 4), (1, 1), (1, 0), (8, 7), (3, 3), (5, 1)]:
        drafts = drafter.draft(added, count).tolist()
        afresh = ModelDrafter(model, VOCAB)
        text += added
        afresh.read(text[:-1])
        assert drafts == afresh.draft(text[-1:], count).tolist()
        added = [*drafts[:right], [*drafts, 0][right] + 1]


def test_a_full_window_drafts_nothing(generated, small):
    """It cannot be trimmed any more."""
    window = llama_model(layer_types=["full_attention", "sliding_attention"], sliding_window=50)
    found = generated(small, 30, draft_model=window)
    assert_same(found, generated(small, 30))
    drafter = ModelDrafter(window, VOCAB)
    drafter.read(tokens((60,)).tolist())
    assert drafter.draft([7], 3).size == 0


def test_prompt_lookup(generated, model):
    right = 0
    for seed in range(4):
        prompt = mx.concatenate([tokens((20,), seed)] * 3)
        found = generated(model, 60, prompt=prompt, prompt_lookup=True)
        assert_same(found, generated(model, 60, prompt=prompt))
        right += drafted(found)
    # greedy text of a random model repeats itself now and then
    assert right > 20


def test_the_longest_and_last_match_is_taken():
    lookup = PromptLookup()
    lookup.read([1, 2, 3, 10, 11, 9, 2, 3, 20, 1, 2, 3, 30, 31, 32, 5])
    assert lookup.draft([9, 9, 2, 3], 2).tolist() == [20, 1]
    assert lookup.draft([8, 1, 2, 3], 3).tolist() == [30, 31, 32]
    assert lookup.draft([7, 2, 3], 2).tolist() == [7, 2]  # 7, 2, 3 was never there
    assert lookup.draft([40, 41], 3).size == 0


def test_lookup_goes_round_in_a_circle():
    lookup = PromptLookup()
    lookup.read([5, 6, 7, 5, 6])
    assert lookup.draft([7], 8).tolist() == [5, 6, 7, 5, 6, 7, 5, 6]


def test_lookup_forgets():
    lookup = PromptLookup(window=100)
    lookup.read([1000, 1001, 1002])
    for start in range(0, 900, 50):
        lookup.read(range(start, start + 50))
        lookup.read([2000, 2001, start])
        assert len(lookup._tokens) <= 100
        assert len(lookup._after) <= 200
    assert lookup.draft([1000, 1001], 1).size == 0
    assert lookup.draft([2000, 2001], 1).tolist() == [850]
