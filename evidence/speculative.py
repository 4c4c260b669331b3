"""What speculative decoding saves on this machine: prompt look-up and a draft model against plain.

    python examples/pretrain.py --write-text bible.txt
    python evidence/speculative.py --text bible.txt

The main model is the one in the package. The draft model is trained here on the same text for some
minutes, and kept. All arms decode the same prompts in turns in one process; a time is the median
of the seconds per token after the first pass. Last, the passes of a wide model without training
are timed: how much a pass over several tokens costs decides what drafts can save.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx_lm.sample_utils import make_sampler

import fm_mlx
from fm_mlx.loading import PRETRAINED
from fm_mlx.perf.timing import device_line, medians_in_turns, seconds_of, started_caches
from fm_mlx.support.allocator import keep_freed_memory
from fm_mlx.support.arrays import named_arrays
from fm_mlx.support.files import write_json
from fm_mlx.support.tables import aligned

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "examples"))
import texts  # noqa: E402
from pretrain import compiled_step, held_out_nats  # noqa: E402

DRAFT = dict(
    model_type="factorization_memory", hidden_size=64, num_hidden_layers=2, intermediate_size=160,
    memory_size=64, num_memory_states=16, num_active_states=4, vocab_size=2048,
)  # fmt: skip
WIDE = DRAFT | dict(
    hidden_size=1024, num_hidden_layers=4, intermediate_size=2816,
    memory_size=1024, num_memory_states=64, num_active_states=16,
)  # fmt: skip
BATCH, CONTEXT = 8, 256


def chapters_of(text: str) -> list[str]:
    """The chapters of a text that `examples/pretrain.py --write-text` wrote."""
    return re.split(r"(?m)^(?=(?:[1-3] )?[A-Z][A-Za-z ]+ \d+\n\n)", text)[1:]


def train_draft(folder: Path, tokenizer, chapters: list[str], minutes: float) -> None:
    """Train the draft model on what the main one was trained on."""
    training, held_out = (
        np.array(tokenizer.encode(text), np.int32)
        for text in texts.split(chapters, texts.HELD_OUT_EVERY)
    )
    mx.random.seed(0)
    model = fm_mlx.Model(fm_mlx.ModelArgs.from_dict(DRAFT))
    optimizer = optim.AdamW(4e-3, betas=[0.9, 0.95], weight_decay=0.1)
    state = [model.state, optimizer.state]

    update = compiled_step(model, optimizer, state)
    random, started, step = np.random.default_rng(0), time.perf_counter(), 0
    while (share := (time.perf_counter() - started) / (60 * minutes)) < 1:
        # a cosine over the time that there is
        warm = min(1, (step + 1) / 100)
        optimizer.learning_rate = 4e-3 * warm * (0.525 + 0.475 * math.cos(math.pi * share))
        first = random.integers(0, len(training) - CONTEXT - 1, (BATCH, 1))
        mx.eval(update(mx.array(training[first + np.arange(CONTEXT + 1)])), state)
        step += 1
        if step % 200 == 0:
            print(f"step {step}, {share:.0%} of the time", file=sys.stderr, flush=True)
    nats = held_out_nats(model, held_out, CONTEXT)
    print(f"draft model: {step} steps, {nats:.3f} nats per held-out token", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), named_arrays(model.parameters()))
    write_json(folder / "config.json", DRAFT | {"nats_per_held_out_token": nats, "steps": step})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((PRETRAINED / name).read_bytes())


class Arm:
    """One way to decode a prompt; the tokens of its last run."""

    def __init__(self, model, tokenizer, prompt: str, tokens: int, temperature: float, **drafts):
        sampler = make_sampler(temperature, top_p=0.9)
        self._start = partial(
            fm_mlx.stream_generate, model, tokenizer, prompt, tokens, sampler=sampler, **drafts
        )

    def __call__(self) -> float:
        """Decode; seconds per token after the first pass."""
        mx.random.seed(1)
        responses, marks = [], []
        for response in self._start():
            responses.append(response)
            marks.append(time.perf_counter())
        self.tokens = [response.token for response in responses]
        self.drafted = sum(response.from_draft for response in responses)
        first = next(i for i, response in enumerate(responses, 1) if not response.from_draft)
        return (marks[-1] - marks[0]) / (len(marks) - first)


def compare(model, draft, tokenizer, prompts: dict[str, str], args) -> list[dict]:
    """A row for each prompt, temperature and way to draft."""
    ways = {f"look-up {n}": {"prompt_lookup": True, "num_draft_tokens": n} for n in (4, 8)}
    ways |= {f"draft {n}": {"draft_model": draft, "num_draft_tokens": n} for n in (1, 3)}
    rows = []
    for name, prompt in prompts.items():
        for temperature in (0.0, 0.7):
            make = partial(Arm, model, tokenizer, prompt, args.tokens, temperature)
            plain = make()
            arms = {way: make(**drafts) for way, drafts in ways.items()}
            for arm in (plain, *arms.values()):
                arm()  # compiles
            seconds = medians_in_turns({"plain": plain, **arms}, args.rounds)
            for way, arm in arms.items():
                passes = len(arm.tokens) - arm.drafted
                rows.append(
                    {
                        "prompt": name,
                        "temperature": temperature,
                        "drafts": way,
                        "accepted_per_pass": arm.drafted / passes,
                        "plain_tokens_per_second": 1 / seconds["plain"],
                        "tokens_per_second": 1 / seconds[way],
                        "ratio": seconds["plain"] / seconds[way],
                        "identical": arm.tokens == plain.tokens,
                    }
                )
    return rows


def pass_costs(model, rounds: int) -> dict[str, float]:
    """Milliseconds of a pass over 1, 2, 4 and 9 tokens."""
    cache = started_caches(model)

    def run(count: int) -> float:
        return seconds_of(lambda: mx.eval(model(mx.ones((1, count), mx.int32), cache=cache)))

    counts = (1, 2, 4, 9)
    for count in counts:
        run(count)
    times = medians_in_turns({str(c): partial(run, c) for c in counts}, 10 * rounds)
    return {count: 1000 * seconds for count, seconds in times.items()}


def shown(rows: list[dict]) -> list[list[str]]:
    forms = ("{}", "{}", "{}", "{:.2f}", "{:.0f}", "{:.0f}", "{:.2f}", "{}")
    return [[form.format(v) for form, v in zip(forms, row.values(), strict=True)] for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="from examples/pretrain.py")
    parser.add_argument("--draft", type=Path, default=Path("runs/draft"), help="its folder")
    parser.add_argument("--minutes", type=float, default=8, help="of training, if it is not there")
    parser.add_argument("--tokens", type=int, default=200, help="to generate")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "speculative.json")
    args = parser.parse_args()
    keep_freed_memory()
    model, tokenizer = fm_mlx.load()
    chapters = chapters_of(args.text.read_text(encoding="utf-8"))
    if not (args.draft / "config.json").exists():
        train_draft(args.draft, tokenizer, chapters, args.minutes)
    draft, _ = fm_mlx.load(args.draft)

    offerings = next(c for c in chapters if c.startswith("Numbers 7\n"))
    held_out = [c for c in chapters[19::20] if len(c) > 3000]
    prompts = {"repetitive (Numbers 7)": offerings[:6000], "held-out prose": held_out[0][:2500]}
    prompts["more held-out prose"] = held_out[len(held_out) // 2][:2500]
    rows = compare(model, draft, tokenizer, prompts, args)
    print("\n".join(aligned([list(rows[0]), *shown(rows)], left=3)))
    wide = fm_mlx.Model(fm_mlx.ModelArgs.from_dict(WIDE))
    models = {"packaged": model, "draft": draft, "wide": wide}
    costs = {name: pass_costs(one, args.rounds) for name, one in models.items()}
    print("Milliseconds of a pass over n tokens (accepted drafts from which it pays, if free):")
    for name, cost in costs.items():
        each = [f"{n}: {ms:.2f} ({ms / cost['1'] - 1:.2f})" for n, ms in cost.items()]
        print(f"{name:8}  {'  '.join(each)}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, {"device": device_line(), "rows": rows, "pass_milliseconds": costs})


if __name__ == "__main__":
    main()
