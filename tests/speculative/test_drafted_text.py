"""What goes with drafts: samplers, ends of texts, caches, memories, prompts in pieces."""

from __future__ import annotations

from contextlib import contextmanager

import mlx.core as mx
import pytest
from cases import close, tokens
from drafted import assert_same, noisy
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_logits_processors, make_sampler
from tiny import some_text

import fm_mlx
from fm_mlx.cache import state_of
from fm_mlx.finite import NotFiniteError

WAYS = {
    "draft model": lambda model: {"draft_model": noisy(model, 0.1)},
    "prompt lookup": lambda model: {"prompt_lookup": True},
}


@pytest.fixture(params=WAYS)
def drafting(request):
    """Options that make drafts for a model, of which some are right."""
    return WAYS[request.param]


@pytest.mark.parametrize("count", [1, 2, 4, 5, 13])
def test_there_are_as_many_tokens_as_asked_for(generated, small, drafting, count):
    found = generated(small, count, **drafting(small))
    assert_same(found, generated(small, count))
    assert len(found) == count
    assert found[-1].finish_reason == "length"


def test_a_prompt_of_one_token(generated, model, drafting):
    prompt = tokens((1,))
    assert_same(generated(model, prompt=prompt, **drafting(model)), generated(model, prompt=prompt))


def test_sampled_text_is_that_of_plain_decoding(generated, model, drafting):
    """To the same seed; so its distribution is that of plain decoding as well."""
    for seed in range(4):
        options = {"sampler": make_sampler(2.0, top_p=0.9), "seed": seed}
        plain = generated(model, 40, **options)
        assert len({r.token for r in plain}) > 20
        assert_same(generated(model, 40, **options, **drafting(model)), plain)


def test_logits_processors(generated, small, drafting):
    """They see the tokens before each position, drafts that stand included."""
    options = {"logits_processors": make_logits_processors(repetition_penalty=1.2)}
    plain = generated(small, 40, **options)
    found = generated(small, 40, **options, **drafting(small))
    assert_same(found, plain)
    assert [r.token for r in plain] != [r.token for r in generated(small, 40)]


@contextmanager
def ending(tokenizer, token):
    """With one more token that ends the text."""
    before = set(tokenizer.eos_token_ids)
    tokenizer.eos_token_ids = before | {token}
    try:
        yield
    finally:
        tokenizer.eos_token_ids = before


def test_the_end_of_the_text_among_the_drafts(generated, tokenizer, model):
    last = generated(model, draft_model=model, num_draft_tokens=6)[9]
    assert last.from_draft
    with ending(tokenizer, last.token):
        caches = [make_prompt_cache(model) for _ in range(2)]
        plain = generated(model, -1, prompt_cache=caches[0])
        found = generated(model, -1, prompt_cache=caches[1], draft_model=model, num_draft_tokens=6)
    assert_same(found, plain)
    assert found[-1].finish_reason == "stop"
    assert found[-1].from_draft
    assert_same_states(*caches)


def assert_same_states(found, plain):
    for a, b in zip(found, plain, strict=True):
        close(state_of(a), state_of(b), 1e-5, "state")


@pytest.mark.parametrize("count", [1, 6, 7, 30])
def test_the_prompt_cache_goes_on(generated, model, drafting, count):
    caches = [make_prompt_cache(model) for _ in range(2)]
    for seed in (1, 2):
        plain = generated(model, count, prompt_cache=caches[0], seed=seed)
        found = generated(model, count, prompt_cache=caches[1], seed=seed, **drafting(model))
        assert_same(found, plain)
        assert_same_states(*caches)
    assert_same(*(generated(model, 12, prompt_cache=cache) for cache in caches))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_a_generator_that_is_left_leaves_the_state_behind(model, tokenizer, count):
    """That after the tokens which it gave, as in plain decoding."""

    def left(**options):
        cache = make_prompt_cache(model)
        run = fm_mlx.stream_generate(
            model, tokenizer, tokens((40,)), 50, prompt_cache=cache, **options
        )
        for _ in range(count):
            next(run)
        run.close()
        return cache

    assert_same_states(left(draft_model=model, num_draft_tokens=4), left())


def test_a_memory_goes_before(generated, loaded, drafting):
    model, _ = loaded
    memory = fm_mlx.remember(*loaded, some_text(3000))
    options = {"memory": memory, "prompt": "the river"}
    plain = generated(model, 30, **options)
    assert_same(generated(model, 30, **options, **drafting(model)), plain)
    without = generated(model, 1, prompt="the river")
    assert not mx.allclose(plain[0].logprobs, without[0].logprobs)


def test_prompts_in_pieces(generated, small, drafting):
    text = some_text(3000)
    plain = generated(small, prompt=text, prefill_step_size=64)
    for prompt in (text, iter([text[:1000], text[1000:]])):
        calls = []
        found = generated(
            small, prompt=prompt, prefill_step_size=64, **drafting(small),
            prompt_progress_callback=lambda *call, calls=calls: calls.append(call),
        )  # fmt: skip
        assert_same(found, plain)
        count = found[0].prompt_tokens
        assert calls[-1] == (count, count)
        read = [done for done, _ in calls]
        assert read == sorted(read)
        assert len(read) > 10


def test_a_prompt_that_is_read_twice_takes_no_memory(generated, small):
    """By the model and by what drafts, each piece of it when it comes."""
    peaks = []

    def progress(done, _):
        peaks.append((done, mx.get_active_memory()))

    generated(
        small, 2, prompt=(some_text(2000, i) for i in range(10)), prefill_step_size=256,
        draft_model=noisy(small, 0.1), prompt_progress_callback=progress,
    )  # fmt: skip
    assert peaks[-1][0] > 5000
    assert peaks[-1][1] - next(peak for done, peak in peaks if done >= 1000) < 1e6


def test_what_is_not_finite_is_said(changed, checkpoint, loaded, drafting):
    name = "model.layers.1.memory.out_proj.weight"
    shape = mx.load(str(checkpoint / "model.safetensors"))[name].shape
    broken, tokenizer = fm_mlx.load(changed(weights={name: mx.full(shape, float("nan"))}))
    with pytest.raises(NotFiniteError, match=f"before token 1.*the output of layer 1.*{name}"):
        next(fm_mlx.stream_generate(broken, tokenizer, "river", **drafting(loaded[0])))


def test_a_state_that_is_not_finite_is_said(loaded, drafting):
    model, tokenizer = loaded
    cache = make_prompt_cache(model)
    model(tokens((1, 9)), cache)
    cache[1][0] = cache[1][0] * float("nan")
    options = {"prompt_cache": cache, **drafting(model)}
    with pytest.raises(NotFiniteError, match="the state of layer 1 is not"):
        next(fm_mlx.stream_generate(model, tokenizer, [5], 9, **options))
