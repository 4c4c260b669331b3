"""Twenty questions of a book: the first token after a memory, and after reading it again.

    python evidence/questions.py --text bible.txt

Then what mlx-lm's prompt caches of a llama and a mamba2 of equal size weigh and take to load. The
numbers in those caches are random: neither size nor time depends on them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from figures import record
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache

import fm_mlx
from fm_mlx.memory import Memory
from fm_mlx.perf.bench import Arm, build_arms
from fm_mlx.perf.timing import medians_in_turns, seconds_of

QUESTIONS = (
    *("In the beginning", "And Noah", "And Abraham said", "Then Jacob", "And Joseph"),
    *("And Moses said unto", "The LORD is", "And David", "And Solomon", "The words of"),
    *("Thus saith", "Behold, the days come", "And Jonah", "Blessed are", "And Jesus answered"),
    *("For God so", "Paul, a servant", "Now faith is", "And I saw", "The grace of our"),
)
CACHED_TOKENS = (8_192, 65_536)
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 text")
    parser.add_argument(
        "--again", type=int, default=3, help="questions for which the book is read again (3)"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record(
            "questions",
            {
                "book": book(args.text, args.again, Path(folder)),
                "files of equal models": files(Path(folder)),
            },
        )


def book(text: Path, again: int, folder: Path) -> dict[str, Any]:
    """Seconds to the first token of each question, with a memory from a file and without."""
    model, tokenizer = fm_mlx.load()
    path = folder / "book.memory"
    memory = fm_mlx.remember(model, tokenizer, text)
    memory.save(path)
    list(fm_mlx.stream_generate(model, tokenizer, "And", 1, memory=memory))  # compiles

    def after_memory(question: str) -> float:
        start = time.perf_counter()
        next(fm_mlx.stream_generate(model, tokenizer, question, 1, memory=Memory.load(path)))
        return time.perf_counter() - start

    def read_again(question: str) -> float:
        start = time.perf_counter()
        with text.open(encoding="utf-8") as file:
            prompt = (part for source in (file, [question]) for part in source)
            next(fm_mlx.stream_generate(model, tokenizer, prompt, 1))
        return time.perf_counter() - start

    after = [after_memory(question) for question in QUESTIONS]
    reading = [read_again(question) for question in QUESTIONS[:again]]
    ratio = statistics.median(reading) / statistics.median(after)
    return {
        "tokens": memory.tokens_seen,
        "first token after a memory from its file, ms": {
            question: round(s * 1e3, 1) for question, s in zip(QUESTIONS, after, strict=True)
        },
        "first token after reading again, s": [round(s, 1) for s in reading],
        "ratio of medians": round(ratio),
    }


def files(folder: Path) -> list[dict[str, Any]]:
    """What the state after a long text weighs as a file, and how soon it is of use again."""
    fm, *others = build_arms(4)
    rows, runs = [], {}

    def add(name: str, tokens: str, path: Path, load: Callable[[], Any]) -> None:
        rows.append({"model": name, "tokens": tokens, "bytes": path.stat().st_size})
        runs[f"{name} {tokens}"] = lambda: seconds_of(load)

    state = mx.random.normal((fm.model.args.num_hidden_layers, 64, 256))
    whole = replace(Memory.empty(fm.model), state=state)
    for name, memory in (("fm", whole), ("fm with 25 snapshots", with_snapshots(whole, 25))):
        path = folder / f"{name}.memory"
        memory.save(path)
        add(name, "any", path, lambda path=path: first_after_memory(fm.model, path))
    small = folder / "small.memory"
    whole.save(small, bits=8)
    add("fm in 8 bits", "any", small, lambda: first_after_memory(fm.model, small))
    for arm in others:
        for tokens in CACHED_TOKENS if arm.name == "llama" else ("any",):
            path = folder / f"{arm.name}-{tokens}.safetensors"
            save_prompt_cache(str(path), filled(arm, tokens))
            add(
                arm.name, str(tokens), path, lambda arm=arm, path=path: first_after_cache(arm, path)
            )
    medians = medians_in_turns(runs, ROUNDS)
    for row in rows:
        row["load and first logits, ms"] = round(
            1e3 * medians[f"{row['model']} {row['tokens']}"], 1
        )
    return rows


def with_snapshots(memory: Memory, count: int) -> Memory:
    """A memory with as many snapshots as one of a million tokens has."""
    for _ in range(count):
        text = fm_mlx.memory.Text("", "", 0, 0, 1, True, "", memory.log_kept)
        memory = replace(
            memory,
            texts=[text],
            snapshots=[*memory.snapshots, fm_mlx.memory.Snapshot(memory.state, 1, text, 1)],
        )
    return memory


def first_after_memory(model: Any, path: Path) -> None:
    memory = Memory.load(path)
    mx.eval(model(mx.array([[1]]), cache=memory.prompt_cache(model)))


def first_after_cache(arm: Arm, path: Path) -> None:
    mx.eval(arm.model(mx.array([[1]]), cache=load_prompt_cache(str(path))))


def filled(arm: Arm, tokens: int | str) -> list[Any]:
    """A prompt cache of mlx-lm's after so many tokens, of random numbers."""
    cache = make_prompt_cache(arm.model)
    arm.model(mx.array([[1, 2, 3]]), cache=cache)
    for layer in cache:
        if isinstance(tokens, int):
            shape = (*layer.keys.shape[:2], tokens, layer.keys.shape[-1])
            layer.state = mx.random.normal(shape), mx.random.normal(shape), tokens
    mx.eval([layer.state for layer in cache])
    return cache


if __name__ == "__main__":
    main()
