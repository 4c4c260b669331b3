"""The state after the drafts that stand is that of a model which never saw the others."""

from __future__ import annotations

import mlx.core as mx
import pytest
from cases import REAL, Code, close, tiny_model, tokens
from mutant import mutated

# Of states of unit scale, computed by a pass over more tokens and over fewer.
STATE_TOLERANCE = 1e-6


def rewound_is_never_drafted(code: Code, length: int = 9) -> None:
    """The state taken back to the first tokens of a pass = that after a pass over those alone."""
    model = tiny_model(code, num_memory_states=16)
    before = model.make_cache()
    model(tokens((1, 20)), before)
    states = [layer[0] for layer in before]
    drafts = tokens((1, length), seed=1)
    for kept in range(1, length + 1):
        rewound, alone = ([code.cache.RewindableCache(s) for s in states] for _ in range(2))
        model(drafts, rewound)
        model(drafts[:, :kept], alone)
        for a, b in zip(rewound, alone, strict=True):
            a.rewind(kept)
            close(a[0], b[0], STATE_TOLERANCE, f"state after {kept} of {length}")


def test_rewound_is_never_drafted():
    for length in (1, 2, 9, 40):  # 40: more than a chunk
        rewound_is_never_drafted(REAL, length)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (None, "tokens = max(1, tokens - 1)"),
        ("keep.prod(axis=1)", "mx.ones_like(keep[:, 0])"),
        (
            "mx.cumprod(keep, axis=1, reverse=True, inclusive=False)",
            "mx.cumprod(keep, axis=1, reverse=True)",
        ),
    ],
    ids=["one token too few", "what was there does not decay", "a token decays at once"],
)
def test_the_law_of_rewinding_fails_on(old, new):
    mx.disable_compile()
    try:
        broken = mutated("cache", "RewindableCache.rewind", old, new)
        with pytest.raises(AssertionError, match="state after"):
            rewound_is_never_drafted(broken)
    finally:
        mx.enable_compile()
