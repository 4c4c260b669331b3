"""Generation against mlx-lm's, and prompts in pieces against whole ones."""

from __future__ import annotations

import io
import random
import time

import mlx.core as mx
import mlx_lm
import pytest
from in_step import in_step
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache
from mlx_lm.sample_utils import make_sampler
from tiny import some_text
from tokenizers_of_others import byte_level_tokenizer, prefixing_tokenizer

import fm_mlx
from fm_mlx import text as text_module
from fm_mlx.text import encode_pieces


def cut_anywhere(text: str, seed: int) -> list[str]:
    rng = random.Random(seed)
    places = sorted(rng.choices(range(len(text) + 1), k=rng.randrange(150)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.fixture(scope="module", params=["packaged kind", "byte level", "prefixing"])
def any_tokenizer(request, loaded):
    if request.param == "packaged kind":
        return loaded[1]
    return byte_level_tokenizer() if request.param == "byte level" else prefixing_tokenizer()


@pytest.mark.parametrize("block", [300, 1000])
def test_pieces_are_tokenized_like_the_whole(any_tokenizer, monkeypatch, block):
    monkeypatch.setattr(text_module, "BLOCK", block)
    for seed in range(12):
        text = some_text(random.Random(seed).randrange(1, 3000), seed)
        whole = any_tokenizer.encode(text)
        pieces = list(encode_pieces(any_tokenizer, cut_anywhere(text, seed)))
        assert [i for piece in pieces for i in piece] == whole
        assert all(pieces)


def test_lines_without_spaces_are_tokenized_like_the_whole(any_tokenizer, monkeypatch):
    monkeypatch.setattr(text_module, "BLOCK", 100)
    text = "\n".join(some_text(3000).split())
    pieces = list(encode_pieces(any_tokenizer, [text]))
    assert len(pieces) > 20
    assert [i for piece in pieces for i in piece] == any_tokenizer.encode(text)


def test_blocks_do_not_depend_on_the_pieces():
    for seed in range(20):
        text = some_text(2000, seed)
        whole = list(text_module.blocks_of([text], 100))
        assert list(text_module.blocks_of(cut_anywhere(text, seed), 100)) == whole
        assert list(text_module.blocks_of(text, 100)) == whole  # character by character
        assert "".join(whole) == text
        assert max(map(len, whole)) <= 100


def test_text_without_whitespace_is_cut_all_the_same(loaded):
    _, tokenizer = loaded
    text = "memory" * 10000
    pieces = list(encode_pieces(tokenizer, [text]))
    assert len(pieces) == 4  # 60,000 characters in blocks of 16,384
    ids = [i for piece in pieces for i in piece]
    assert tokenizer.decode(ids) == text


def test_special_tokens_stand_only_around_the_text(monkeypatch):
    tokenizer = prefixing_tokenizer()
    monkeypatch.setattr(text_module, "BLOCK", 200)
    text = some_text(1000)

    def ids(**options):
        return [i for piece in encode_pieces(tokenizer, [text], **options) for i in piece]

    inside = tokenizer.encode(text, add_special_tokens=False)
    assert ids() == [1, *inside, 2]
    assert ids(add_special_tokens=False) == inside
    text = "<s>" + text
    assert ids()[:2] != [1, 1]
    assert ids(add_special_tokens=True)[:2] == [1, 1]


def test_pieces_must_be_text(loaded):
    _, tokenizer = loaded
    with pytest.raises(TypeError, match="a piece of the prompt is a bytes; allowed is str"):
        list(encode_pieces(tokenizer, ["text", b"bytes"]))


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_same_text_as_mlx_lm(loaded, temperature):
    model, tokenizer = loaded

    def run(stream_generate, prompt):
        mx.random.seed(11)
        options = {"max_tokens": 24, "prefill_step_size": 64, "sampler": make_sampler(temperature)}
        return list(stream_generate(model, tokenizer, prompt, **options))

    text = some_text(700)
    wanted = run(mlx_lm.stream_generate, text)
    assert len({r.token for r in wanted}) > 3
    for prompt in (
        text,
        tokenizer.encode(text),
        [text],
        iter(cut_anywhere(text, 3)),
        io.StringIO(text, newline=""),
    ):
        found = run(fm_mlx.stream_generate, prompt)
        assert [r.token for r in found] == [r.token for r in wanted]
        assert "".join(r.text for r in found) == "".join(r.text for r in wanted)
        assert [r.finish_reason for r in found] == [r.finish_reason for r in wanted]
        for ours, theirs in zip(found, wanted, strict=True):
            assert mx.array_equal(ours.logprobs, theirs.logprobs)
            assert ours.prompt_tokens == theirs.prompt_tokens


def test_generate_gives_the_text_of_stream_generate(loaded, capsys):
    model, tokenizer = loaded
    text = fm_mlx.generate(model, tokenizer, "the river", max_tokens=8)
    assert text == mlx_lm.generate(model, tokenizer, "the river", max_tokens=8)
    assert capsys.readouterr().out == ""
    assert fm_mlx.generate(model, tokenizer, iter(["the", " river"]), True, max_tokens=8) == text
    printed = capsys.readouterr().out
    assert printed.startswith(f"{'=' * 10}\n{text}\n{'=' * 10}\nPrompt: ")
    assert "Generation: 8 tokens" in printed


@pytest.mark.parametrize("tokens", [64, 65, 66, 128, 129])
def test_counts_at_the_edges_of_the_steps(loaded, tokens):
    """The last piece is left to mlx-lm, so that it can be cut where mlx-lm cuts."""
    model, tokenizer = loaded
    text = tokenizer.decode(tokenizer.encode(some_text(3000))[:tokens])
    count = len(tokenizer.encode(text))
    calls = []
    (response,) = fm_mlx.stream_generate(
        model,
        tokenizer,
        [text],
        1,
        prefill_step_size=64,
        prompt_progress_callback=lambda *call: calls.append(call),
    )
    (wanted,) = mlx_lm.stream_generate(model, tokenizer, text, 1, prefill_step_size=64)
    assert response.prompt_tokens == wanted.prompt_tokens == count
    assert mx.array_equal(response.logprobs, wanted.logprobs)
    assert calls[0] == (0, None)
    assert calls[-1] == (count, count)
    read = [call[0] for call in calls]
    assert read == sorted(read)
    assert {total for _, total in calls} == {None, count}


def test_prompt_speed_counts_the_reading(loaded):
    model, tokenizer = loaded
    seconds = 0.4

    def slow():
        time.sleep(seconds)
        yield some_text(600)

    (response,) = fm_mlx.stream_generate(model, tokenizer, slow(), 1, prefill_step_size=64)
    assert response.prompt_tokens / response.prompt_tps >= seconds


def test_a_prompt_is_read_as_it_comes(loaded):
    """When a piece is asked for, all but the last blocks have been read."""
    model, tokenizer = loaded
    read, lag = [0], []
    text = some_text(1000)
    per_piece = len(tokenizer.encode(text))

    def pieces():
        for number in range(150):
            lag.append(number * per_piece - read[0])
            yield text

    def progress(done, _):
        read[0] = done

    prompt = pieces()
    options = {"prefill_step_size": 256, "prompt_progress_callback": progress}
    (response,) = fm_mlx.stream_generate(model, tokenizer, prompt, 1, **options)
    assert response.prompt_tokens > 4 * max(lag)
    assert max(lag) < 2 * 17 * per_piece + 256


@pytest.mark.parametrize("prompt", ["", [], [""], iter(()), io.StringIO("")])
def test_empty_prompts_are_refused(loaded, prompt):
    with pytest.raises(ValueError, match="the prompt is empty"):
        next(fm_mlx.stream_generate(*loaded, prompt))


def test_no_tokens_to_generate_are_refused_before_the_prompt_is_read(loaded):
    def untouched():
        raise AssertionError("the prompt was read")
        yield

    with pytest.raises(ValueError, match="max_tokens is 0; allowed are whole numbers from 1"):
        next(fm_mlx.stream_generate(*loaded, untouched(), 0))


def test_end_of_text_ends_the_text(loaded):
    model, tokenizer = loaded
    third = list(fm_mlx.stream_generate(model, tokenizer, "the river", 6))[2].token
    before = set(tokenizer.eos_token_ids)
    tokenizer.eos_token_ids = before | {third}
    try:
        responses = list(fm_mlx.stream_generate(model, tokenizer, iter(["the river"]), -1))
    finally:
        tokenizer.eos_token_ids = before
    assert responses[-1].finish_reason == "stop"
    assert responses[-1].token == third
    assert len(responses) <= 3


def test_saved_state_goes_on_bit_for_bit(loaded, tmp_path):
    model, tokenizer = loaded
    first, second = some_text(500, 1), " " + some_text(200, 2)
    cache = make_prompt_cache(model)
    for _ in fm_mlx.stream_generate(model, tokenizer, [first], 5, prompt_cache=cache):
        pass
    path = str(tmp_path / "state.safetensors")
    save_prompt_cache(path, cache, {"model": "tiny"})
    restored, metadata = load_prompt_cache(path, return_metadata=True)
    assert metadata == {"model": "tiny"}

    def go_on(prompt, state):
        return list(fm_mlx.stream_generate(model, tokenizer, prompt, 8, prompt_cache=state))

    wanted = go_on(second, cache)
    found = go_on(iter([second]), restored)
    assert [r.token for r in found] == [r.token for r in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        assert mx.array_equal(ours.logprobs, theirs.logprobs)
    afresh = go_on(second, None)
    assert not mx.array_equal(afresh[0].logprobs, wanted[0].logprobs)


def test_ragged_batch_gives_each_prompt_its_own_text(loaded):
    model, tokenizer = loaded
    prompts = [tokenizer.encode(some_text(n, n)) for n in (5, 400, 60, 1)]
    assert len({len(p) for p in prompts}) == 4
    # batches run in other orders of summation: alike to rounding, so near ties could flip
    texts = mlx_lm.batch_generate(model, tokenizer, prompts, max_tokens=12).texts
    alone = [
        tokenizer.decode([r.token for r in fm_mlx.stream_generate(model, tokenizer, p, 12)])
        for p in prompts
    ]
    assert texts == alone


def test_memory_does_not_grow_with_the_prompt(loaded):
    model, tokenizer = loaded
    peaks = []
    text = some_text(20000)

    def progress(done, _):
        peaks.append((done, mx.get_peak_memory()))

    options = {"prefill_step_size": 512, "prompt_progress_callback": progress}
    with in_step():
        for _ in fm_mlx.stream_generate(model, tokenizer, (text for _ in range(8)), 2, **options):
            pass
    settled = next(peak for done, peak in peaks if done >= 4096)
    assert peaks[-1][0] > 40000
    assert mx.get_peak_memory() - settled < 1e6


@pytest.mark.parametrize(
    ("generate", "prompt"), [(fm_mlx.generate, "river"), (fm_mlx.batch_generate, ["river", "the"])]
)
def test_random_numbers_go_on_after_a_sampler_that_raises(loaded, generate, prompt):
    """mlx-lm's raises while MLX compiles it, which leaves random numbers that cannot be drawn."""
    mx.random.seed(3)
    wanted = mx.random.uniform(shape=(4,)).tolist()
    mx.random.seed(3)
    with pytest.raises(ValueError, match="top_k"):
        generate(*loaded, prompt, sampler=make_sampler(1.0, top_k=9999))
    assert mx.random.uniform(shape=(4,)).tolist() == wanted
