"""How the server samples, and where a text ends."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served import engine_of, expected, some_words, work_on

from fm_mlx.serving.sampling import sampler_for
from fm_mlx.serving.stops import StopText


class TestSampling:
    def test_the_same_seed_the_same_text(self, words):
        """Whatever is generated beside it, and as `fm_mlx.generate` does with such a sampler."""

        def sampler(seed: int):
            return sampler_for(1.3, 0.9, 500, 0.001, seed)

        prompt = some_words(20, seed=30)
        alone = [expected(words, prompt, 25, sampler=sampler(seed)) for seed in (1, 2, 2**32 - 1)]
        assert len(set(alone)) == 3
        with engine_of(words) as engine:
            for others in (0, 5):
                for i in range(others):
                    company = work_on(words, some_words(5 + i, seed=i), 40, sampler=sampler(i))
                    engine.submit(company[0])
                works = [
                    work_on(words, prompt, 25, sampler=sampler(seed)) for seed in (1, 2, 2**32 - 1)
                ]
                for work, _ in works:
                    engine.submit(work)
                assert [(heard.last(), heard.text)[1] for _, heard in works] == alone

    @pytest.mark.parametrize(
        ("options", "kept"),
        [
            ((1, 1, 0, 0), 6),
            ((1, 0, 0, 0), 6),
            ((1, 1, 2, 0), 2),
            ((1, 1, 10**6, 0), 6),
            ((1, 0.4, 0, 0), 1),
            ((1, 0.41, 0, 0), 2),
            ((1, 0.7, 0, 0), 3),
            ((1, 1, 0, 0.3), 3),
            ((1, 1, 0, 1), 1),
            ((1, 0.9, 3, 0.5), 2),
            ((1e-9, 1, 0, 0), 1),
            ((1e-4, 1, 0, 0), 1),
        ],
    )
    def test_what_is_sampled_from(self, options, kept):
        logprobs = mx.log(mx.array([[0.05, 0.4, 0.1, 0.15, 0.25, 0.05]]))
        order = [1, 4, 3, 2, 0, 5]
        sample = sampler_for(*options, seed=3)
        drawn = [sample(logprobs).item() for _ in range(400)]
        assert set(drawn) == set(order[:kept])

    def test_how_often_is_what_the_temperature_says(self):
        """In 1,000 draws; a standard deviation is below 0.016."""
        probabilities = np.array([0.5, 0.3, 0.15, 0.05])
        for temperature in (0.5, 2):
            sample = sampler_for(temperature, 1, 0, 0, seed=5)
            logprobs = mx.log(mx.array(probabilities, mx.float32))[None]
            drawn = mx.concatenate([sample(logprobs) for _ in range(1000)])
            shares = np.bincount(np.array(drawn), minlength=4) / 1000
            wanted = probabilities ** (1 / temperature)
            assert np.abs(shares - wanted / wanted.sum()).max() < 0.08


class TestStopText:
    @settings(deadline=None, max_examples=300)
    @given(
        st.lists(st.text("ab", max_size=4), max_size=8),
        st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    )
    def test_against_the_whole_text(self, pieces, stop):
        """What is shown is the text to the first stop, and as much of it as can be known."""
        ending, shown = StopText(stop), ""
        for number, piece in enumerate(pieces):
            shown += ending.feed(piece)
            text = "".join(pieces[: number + 1])
            ends = [place for place in map(text.find, stop) if place >= 0]
            assert ending.found == bool(ends)
            if ends:
                assert shown == text[: min(ends)]
                assert ending.rest() == ""
                return
            begun = (
                n
                for n in range(len(text) + 1)
                if any(s.startswith(text[n:]) for s in stop) or n == len(text)
            )
            assert shown == text[: next(begun)]
        assert shown + ending.rest() == "".join(pieces)
