"""The store of states after beginnings of prompts."""

from __future__ import annotations

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fm_mlx.memory import PrefixStore
from fm_mlx.memory.prefixes import stops

TOKENS = st.lists(st.integers(0, 2), max_size=6)
ROOTS = st.sampled_from([b"", b"a"])


def state(number: float) -> mx.array:
    return mx.full((2, 3, 4), number)  # 96 bytes


def number_of(found: tuple[int, mx.array | None]) -> tuple[int, float | None]:
    length, states = found
    return length, None if states is None else float(states[0, 0, 0].item())


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), ROOTS, TOKENS), max_size=20),
    st.integers(0, 5),
)
def test_like_a_list(steps, most):
    """Puts and finds, in any order: what a list of what was used does, the latest at its end."""
    store = PrefixStore(96 * most + 95)
    used: list[tuple[tuple, int]] = []
    for number, (puts, root, tokens) in enumerate(steps):
        if puts:
            store.put(root, tokens, state(number))
            kept = next((n for key, n in used if key == (root, tokens)), number)
            used = [entry for entry in used if entry[0] != (root, tokens)]
            used = [*used, ((root, tokens), kept)][max(0, len(used) + 1 - most) :]
        else:
            candidates = [
                (len(key[1]), (key, n))
                for key, n in used
                if key[0] == root and len(key[1]) < len(tokens) and tokens[: len(key[1])] == key[1]
            ]
            length, entry = max(candidates, default=(0, None), key=lambda pair: pair[0])
            wanted = (length, None if entry is None else entry[1])
            assert number_of(store.find(root, tokens)) == wanted
            if entry is not None:
                used.remove(entry)
                used.append(entry)
        assert len(store) == len(used)
        assert store.nbytes == 96 * len(used) <= store.max_bytes


def test_the_longest_beginning_and_never_the_whole_prompt():
    store = PrefixStore(1000)
    assert store.find(b"", [1, 2, 3]) == (0, None)
    for length in (1, 2, 3):
        store.put(b"", [1, 2, 3][:length], state(length))
    assert number_of(store.find(b"", [1, 2, 3, 4])) == (3, 3)
    assert number_of(store.find(b"", [1, 2, 3])) == (2, 2)
    assert number_of(store.find(b"", [1, 2, 4])) == (2, 2)
    assert store.find(b"", [1]) == (0, None)
    assert store.find(b"memory", [1, 2, 3]) == (0, None)


def test_those_used_longest_ago_go_first():
    """To be found, or put again, is to be used."""
    store = PrefixStore(2 * 96)
    store.put(b"", [1], state(1))
    store.put(b"", [2], state(2))
    assert number_of(store.find(b"", [1, 9])) == (1, 1)
    store.put(b"", [3], state(3))
    assert store.find(b"", [2, 9]) == (0, None)
    store.put(b"", [1], state(4))
    store.put(b"", [5], state(5))
    assert store.find(b"", [3, 9]) == (0, None)
    # the states after the same tokens are the same: those that are there are kept
    assert number_of(store.find(b"", [1, 9])) == (1, 1)


def test_tokens_are_not_run_together():
    """Numbers of several bytes, whose bytes in a row could be those of others."""
    store = PrefixStore(1000)
    store.put(b"", [1, 256], state(1))
    assert store.find(b"", [257, 0, 8]) == (0, None)
    assert number_of(store.find(b"", [1, 256, 8])) == (2, 1)


def test_one_that_is_too_large_drops_no_other():
    store = PrefixStore(100)
    store.put(b"", [1], state(1))
    store.put(b"", [2], mx.zeros((2, 3, 5)))
    assert (len(store), store.nbytes) == (1, 96)
    assert number_of(store.find(b"", [1, 2])) == (1, 1)


def test_a_negative_size_is_refused():
    with pytest.raises(ValueError, match="max_bytes is -1; allowed are whole numbers from 0"):
        PrefixStore(-1)


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_stops_cover_the_prompt(start, length):
    """From any token, the last stop before it, or the start, is near."""
    end = start + length
    places = stops(start, end)
    assert places == sorted(set(places)) and places[-1] == end
    assert all(start < place or place == end for place in places)
    assert len(places) <= max(1, (length // 64 + 1).bit_length() + 1)
    for token in range(start, end):
        before = max(place for place in [start, *places] if place <= token)
        assert token - before <= max(end - token, 64)
