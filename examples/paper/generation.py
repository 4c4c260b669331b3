"""Time and memory of generation against the context: FM, llama and mamba2, 512 tokens to a million.

    python examples/paper/generation.py

The models are those of ``sweep.py`` (1.37 million parameters, float32). For each context
results/generation.csv gets the milliseconds of a token that is generated after it, and the bytes of
the cache; as far as that is feasible also the seconds to read it. All arms take turns, figures are
medians.

What a token costs a llama depends on the length of its cache, not on what stands there: beyond
16,384 tokens the cache is filled with random numbers instead of read. The states of FM and mamba2
have one size; theirs come from the longest context that was read.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import runs
import sweep
from mlx_lm.models.cache import KVCache, make_prompt_cache

from fm_mlx.perf.bench import prefill
from fm_mlx.perf.timing import decode, medians_in_turns, seconds_of
from fm_mlx.support.allocator import keep_freed_memory

CONTEXTS = [2**power for power in range(9, 21)]
LONGEST_READ = {"fm": 131_072, "llama": 16_384, "mamba2": 16_384}
ROUNDS, TOKENS = 3, 12


def filled(model: nn.Module, context: int) -> list[KVCache]:
    """A llama's cache that holds as many random keys and values."""
    caches = make_prompt_cache(model)
    heads, size = model.args.num_key_value_heads, model.args.head_dim
    head_size = size or model.args.hidden_size // model.args.num_attention_heads
    for cache in caches:
        shape = (1, heads, context, head_size)
        cache.update_and_fetch(mx.random.normal(shape), mx.random.normal(shape))
    mx.eval([cache.state for cache in caches])
    return caches


def main() -> None:
    keep_freed_memory()
    models = {arm: sweep.built(arm, {}, 0) for arm in ("fm", "llama", "mamba2")}
    mx.eval([model.parameters() for model in models.values()])
    kept: dict[str, list] = {}
    for context in CONTEXTS:
        tokens = mx.random.randint(0, 2048, (1, context))
        reading = {
            arm: partial(seconds_of, partial(prefill, model, tokens))
            for arm, model in models.items()
            if context <= LONGEST_READ[arm]
        }
        read = medians_in_turns(reading, 3 if context <= 4096 else 1) if reading else {}
        for arm in read:
            kept[arm] = prefill(models[arm], tokens)
        if context > LONGEST_READ["llama"]:
            kept["llama"] = filled(models["llama"], context)
        decoded = medians_in_turns(
            {arm: partial(decode, models[arm], kept[arm], TOKENS) for arm in models}, ROUNDS
        )
        for arm in models:
            line: dict[str, Any] = {
                "arm": arm,
                "context": context,
                "ms a token": round(1e3 * decoded[arm], 3),
                "cache bytes": sum(cache.nbytes for cache in kept[arm]),
                "seconds to read": round(read[arm], 3) if arm in read else "",
            }
            runs.append("generation", line)


if __name__ == "__main__":
    main()
