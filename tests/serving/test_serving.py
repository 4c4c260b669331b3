"""Two buffers through mlx-lm's generation and caches; what the server's engine makes of work."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import stream_generate
from mlx_lm.models.cache import ArraysCache, load_prompt_cache, save_prompt_cache
from mlx_lm.sample_utils import make_logits_processors
from served import Heard, engine_of, expected, some_words, word_model, work_on

import fm_mlx
from fm_mlx.memory import Memory
from fm_mlx.serving.engine import Ended, Failed, Read, Reading, Remembered, Written


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return word_model(tmp_path_factory.mktemp("buffered"))


@pytest.fixture(scope="module")
def buffered(folder):
    """(model, tokenizer) of the folder; the model's own cache has two buffers."""
    model, tokenizer = fm_mlx.load(folder)
    mx.eval(model.parameters())
    cache = model.make_cache()
    assert [len(layer.cache) for layer in cache] == [6, 6]
    return model, tokenizer


@pytest.fixture(scope="module")
def packaged():
    model, tokenizer = fm_mlx.load()
    mx.eval(model.parameters())
    return model, tokenizer


def dense_cache(model) -> list[ArraysCache]:
    return [ArraysCache(size=1) for _ in model.layers]


def generated(loaded, prompt: str, count: int, cache=None) -> str:
    """The greedy text of mlx-lm's stream_generate; cache None: the one mlx-lm makes."""
    replies = stream_generate(*loaded, prompt, max_tokens=count, prompt_cache=cache)
    text = "".join(reply.text for reply in replies)
    assert len(text.split()) == count
    return text


def test_stream_generate(buffered):
    prompt, dense = some_words(40, seed=1), dense_cache(buffered[0])
    assert generated(buffered, prompt, 30) == generated(buffered, prompt, 30, dense)


def test_saved_and_loaded(buffered, tmp_path):
    """A conversation that is saved, loaded and gone on with."""
    model, _ = buffered
    path = str(tmp_path / "cache.safetensors")
    first = some_words(40, seed=2)
    cache, dense = model.make_cache(), dense_cache(model)
    reply = generated(buffered, first, 20, dense)
    assert generated(buffered, first, 20, cache) == reply
    # more than a step or two: read from the whole state, with what waits to be written
    second = some_words(5, seed=13)
    save_prompt_cache(path, cache)
    loaded = load_prompt_cache(path)
    assert [len(layer.cache) for layer in loaded] == [6, 6]
    wanted = generated(buffered, second, 30, dense)
    assert wanted != generated(buffered, second, 30)
    assert generated(buffered, second, 30, loaded) == wanted
    assert generated(buffered, second, 30, cache) == wanted
    # the file still holds what was saved
    assert generated(buffered, second, 30, load_prompt_cache(path)) == wanted


class TestEngine:
    @pytest.mark.parametrize(("step", "concurrency"), [(512, 32), (13, 3)])
    def test_texts_at_once_are_those_alone(self, buffered, step, concurrency):
        """Of all lengths, with memories and without, more of them than are worked on at once."""
        memory = fm_mlx.remember(*buffered, some_words(50, seed=3))
        kept = np.array(memory.state)
        asked = [(1, 30), (3, 40), (30, 20), (65, 1), (130, 7), (40, 25), (700, 12), (2, 60)]
        prompts = [some_words(length, seed=length) for length, _ in asked]
        with engine_of(buffered, prefill_step_size=step, decode_concurrency=concurrency) as engine:
            works = []
            for number, (prompt, (_, count)) in enumerate(zip(prompts, asked, strict=True)):
                own = {"memory": memory, "root": b"memory"} if number % 2 else {}
                works.append(
                    (prompt, count, own.get("memory"), work_on(buffered, prompt, count, **own))
                )
                engine.submit(works[-1][3][0])
            for prompt, count, own, (work, heard) in works:
                assert heard.last() == Ended("length", count, 0)
                assert heard.text == expected(buffered, prompt, count, memory=own)
                reads = [event for event in heard.events if isinstance(event, Read)]
                assert reads[-1] == Read(len(work.tokens), len(work.tokens))
                assert [read.done for read in reads] == sorted({read.done for read in reads})
        assert np.array_equal(np.array(memory.state), kept)

    def test_texts_that_end_by_themselves(self, packaged):
        """At the token for the end, which is not shown."""
        _, tokenizer = packaged
        (end,) = tokenizer.eos_token_ids
        prompts = ["And God said", "Then", "In the beginning"]
        with engine_of(packaged) as engine:
            for bias in (0, 8, 100):
                works = []
                for prompt in prompts:
                    biased = make_logits_processors({end: bias})
                    works.append(work_on(packaged, prompt, 40, logits_processors=biased))
                    engine.submit(works[-1][0])
                for prompt, (_, heard) in zip(prompts, works, strict=True):
                    processors = make_logits_processors({end: bias})
                    replies = list(
                        fm_mlx.stream_generate(*packaged, prompt, 40, logits_processors=processors)
                    )
                    last = heard.last()
                    assert isinstance(last, Ended)
                    assert heard.text == "".join(reply.text for reply in replies)
                    assert last.reason == replies[-1].finish_reason
                    assert last.completion_tokens == replies[-1].generation_tokens
        assert (last.reason, last.completion_tokens, heard.text) == ("stop", 1, "")

    def test_penalties_see_the_text_alone(self, buffered):
        def processors():
            return make_logits_processors(repetition_penalty=1.5, presence_penalty=1.0)

        prompt = "w7 w8 w9 w7"
        wanted = expected(buffered, prompt, 30, logits_processors=processors())
        assert wanted != expected(buffered, prompt, 30)
        with engine_of(buffered) as engine:
            others = [work_on(buffered, some_words(9, seed=i), 20) for i in range(3)]
            works = [work_on(buffered, prompt, 30, logits_processors=processors()) for _ in "ab"]
            for work, _ in [*others, *works]:
                engine.submit(work)
            assert {(heard.last(), heard.text)[1] for _, heard in works} == {wanted}
            # with most of the prompt from the store
            work, heard = work_on(buffered, prompt, 30, logits_processors=processors())
            engine.submit(work)
            assert heard.last() == Ended("length", 30, 3)
            assert heard.text == wanted

    def test_a_prompt_goes_on_from_what_is_kept(self, buffered):
        """A second turn, the same prompt again, and branches, none of which touches another."""

        def answer(prompt: str, count: int) -> tuple[str, int]:
            work, heard = work_on(buffered, prompt, count)
            engine.submit(work)
            last = heard.last()
            assert isinstance(last, Ended)
            assert last.cached_tokens < heard.first(Read).done <= len(work.tokens)
            return heard.text, last.cached_tokens

        first = some_words(300, seed=20)
        with engine_of(buffered) as engine:
            reply, cached = answer(first, 20)
            assert (reply, cached) == (expected(buffered, first, 20), 0)
            turn = f"{first} {reply} {some_words(5, seed=21)}"
            other = f"{first} {reply} {some_words(5, seed=22)}"
            for prompt, wanted in [(turn, 320), (other, 320), (first, 299), (turn, 324)]:
                assert answer(prompt, 15) == (expected(buffered, prompt, 15), wanted)
            # a prompt and its whole reply: from within the reply, and then one token is left
            assert [answer(f"{first} {reply}", 5)[1] for _ in "ab"] == [315, 319]
            # an edit in the middle: from the place before it
            words = first.split()
            edited = " ".join([*words[:200], "w3", *words[201:]])
            # places are 64, 128, 256 tokens before the last but one
            assert answer(edited, 10) == (expected(buffered, edited, 10), 299 - 128)

    def test_without_room_for_states(self, buffered):
        with engine_of(buffered, cache_bytes=0) as engine:
            for _ in range(2):
                work, heard = work_on(buffered, "w5 w6 w7", 8)
                engine.submit(work)
                assert heard.last() == Ended("length", 8, 0)
                assert heard.text == expected(buffered, "w5 w6 w7", 8)

    def test_what_raises_hits_those_it_is_computed_with_and_no_later_one(self, buffered):
        def broken(tokens, logits):
            if len(tokens) > 6:
                raise RuntimeError("a step\nthat fails")
            return logits

        with engine_of(buffered) as engine:
            works = [work_on(buffered, "w3 w4", 10**6) for _ in range(2)]
            works.append(work_on(buffered, "w3 w4", 20, logits_processors=[broken]))
            for work, _ in works:
                engine.submit(work)
            for _, heard in works:
                assert heard.last() == Failed("RuntimeError: a step\nthat fails", 500)
            work, heard = work_on(buffered, "w3 w4", 8)
            engine.submit(work)
            assert isinstance(heard.last(), Ended)
            assert heard.text == expected(buffered, "w3 w4", 8)

    def test_nan_hits_its_text_alone(self, buffered):
        def broken(tokens, logits):
            return logits * float("nan") if len(tokens) > 6 else logits

        with engine_of(buffered) as engine:
            bad = work_on(buffered, "w3 w4", 50, logits_processors=[broken])
            good = work_on(buffered, "w3 w4", 30)
            for work, _ in (bad, good):
                engine.submit(work)
            assert bad[1].last() == Failed("the model computes NaN", 500)
            assert isinstance(good[1].last(), Ended)
            assert good[1].text == expected(buffered, "w3 w4", 30)
            assert bad[1].text and good[1].text.startswith(bad[1].text)

    def test_a_prompt_that_is_given_up_is_kept_as_far_as_it_was_read(self, buffered):
        prompt = some_words(3000, seed=23)
        with engine_of(buffered, prefill_step_size=50) as engine:
            work, heard = work_on(buffered, prompt, 5)
            engine.submit(work)
            done = heard.first(Read).done
            engine.cancel(work)
            again, heard_again = work_on(buffered, prompt, 5)
            engine.submit(again)
            last = heard_again.last()
            assert isinstance(last, Ended)
            assert done <= last.cached_tokens < 2000
            assert not any(isinstance(event, Written) for event in heard.events)
            assert heard_again.text == expected(buffered, prompt, 5)
            engine.cancel(again)  # of what is over there is nothing to give up

    def test_an_answer_that_is_given_up_ends(self, buffered):
        """And one that waits for its turn does not begin."""
        with engine_of(buffered, decode_concurrency=1) as engine:
            endless, heard = work_on(buffered, "w3 w4", 10**6)
            waiting, unheard = work_on(buffered, "w5", 5)
            engine.submit(endless)
            engine.submit(waiting)
            heard.first(Written)
            engine.cancel(waiting)
            engine.cancel(endless)
            next_one, ended = work_on(buffered, "w6", 1)
            engine.submit(next_one)
            ended.last()
            # what was said is kept with the prompt: only what comes after is read
            work, heard_after = work_on(buffered, f"w3 w4 {heard.text} w9", 5)
            engine.submit(work)
            last = heard_after.last()
            assert isinstance(last, Ended)
            assert last.cached_tokens == len(work.tokens) - 1 > 2
            assert unheard.events == []

    def test_a_stop_text_ends_the_answer(self, buffered):
        whole = expected(buffered, "w3 w4", 30)
        words = whole.split()
        with engine_of(buffered) as engine:
            for stop in ([words[9]], [" ".join(words[8:11]), "never"], [whole[-3:]]):
                work, heard = work_on(buffered, "w3 w4", 30, stop=stop)
                engine.submit(work)
                last = heard.last()
                assert isinstance(last, Ended) and last.reason == "stop"
                assert heard.text == whole[: min(whole.find(s) for s in stop if s in whole)]
            work, heard = work_on(buffered, "w3 w4", 30, stop=[words[-1] + "!"])
            engine.submit(work)
            assert isinstance(heard.last(), Ended)
            assert heard.text == whole

    def test_reading_and_answering_in_turns(self, buffered):
        text = some_words(5000, seed=24)
        wanted = fm_mlx.remember(*buffered, text)
        with engine_of(buffered) as engine:
            heard, lengths = Heard(), []

            def tell(event) -> None:
                lengths.append(len(answer.events))
                heard(event)

            reading = Reading(Memory.empty(*buffered).read(*buffered, text), tell)
            work, answer = work_on(buffered, "w3 w4", 10**6)
            engine.submit(work)
            answer.first(Written)
            engine.submit(reading)
            last = heard.last()
            assert isinstance(last, Remembered)
            assert mx.array_equal(last.memory.state, wanted.state)
            assert [type(event) for event in heard.events] == [Remembered] * 3
            # the answers have half of the time, which is many more tokens than one
            assert lengths[0] + 4 < lengths[1] < lengths[2] - 4
            engine.cancel(work)
            # another text under way is left, and one that cannot be gone on with is refused
            begun = heard.events[0].memory
            for text, status in [("w9 w9", 400), ("", 400)]:
                failed = Heard()
                start = begun if text else Memory.empty(*buffered)
                engine.submit(Reading(start.read(*buffered, text), failed))
                last = failed.last()
                assert isinstance(last, Failed) and last.status == status

    def test_a_reading_that_is_given_up_ends(self, buffered):
        with engine_of(buffered) as engine:
            heard = Heard()
            text = some_words(300_000, seed=26)
            reading = Reading(Memory.empty(*buffered).read(*buffered, text), heard)
            engine.submit(reading)
            heard.first(Remembered)
            engine.cancel(reading)
            lengths = []
            for _ in range(3):  # a piece would be read between two of these
                work, answer = work_on(buffered, "w3 w4", 100)
                engine.submit(work)
                answer.last()
                lengths.append(len(heard.events))
            assert len(set(lengths)) == 1

    def test_what_is_unfinished_fails_when_the_engine_stops(self, buffered):
        with engine_of(buffered, decode_concurrency=1) as engine:
            works = [work_on(buffered, "w3 w4", 10**6) for _ in range(3)]
            for work, _ in works:
                engine.submit(work)
            works[0][1].first(Written)
        assert [heard.last() for _, heard in works] == [Failed("the server stops", 503)] * 3

    def test_time_to_finish(self, buffered):
        """What is done by then is whole; the rest fails, and so does what comes later."""
        with engine_of(buffered) as engine:
            short, heard = work_on(buffered, "w3 w4", 20)
            endless, unheard = work_on(buffered, "w6 w7", 10**6)
            reading = Heard()
            text = some_words(100_000, seed=25)
            engine.submit(endless)
            engine.submit(Reading(Memory.empty(*buffered).read(*buffered, text), reading))
            engine.submit(short)
            engine.end_within(1000)
            assert heard.last() == Ended("length", 20, 0)
            reading.first(Remembered)
            engine.end_within(0)
            stopped = Failed("the server stops", 503)
            assert unheard.last() == reading.last() == stopped
            late, never = work_on(buffered, "w5", 2)
            engine.submit(late)
            assert never.last() == stopped
