"""Clients of all kinds at once, for minutes: each answer is the one given alone; nothing grows.

python examples/pretrain.py --write-text bible.txt; python evidence/soak.py --text bible.txt
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import mlx.core as mx
import openai
import pytest
from figures import record

import fm_mlx
from fm_mlx.memory import Memory
from fm_mlx.serving.sampling import sampler_for

CLIENTS = 16
PORT = 8123
TOP_P = 0.95
KINDS = {"answer": 8, "cut": 1, "bad": 1}
BAD = [{"max_tokens": 0}, {"top_p": 7}, {"stop": ""}, {"model": "other"}, {"prompt": []}, {"n": 2}]
Asked = dict[str, Any]
loaded = cache(fm_mlx.load)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 text")
    parser.add_argument("--seconds", type=int, default=120, help="how long (120)")
    args = parser.parse_args()
    text = args.text.read_text()
    tokens = loaded()[1].encode(text[:600_000])
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key="none", max_retries=0)
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder) / "book.memory", Path(folder) / "log"
        fm_mlx.remember(*loaded(), text[-50_000:]).save(path)
        command = [sys.executable, "-m", "fm_mlx", "server", "--log-level", "warning"]
        # a store that is full when the warm-up ends: what grows then is a leak
        options = f"--port {PORT} --prompt-cache-bytes 40000000 --memory book={path}".split()
        with log.open("w") as output:
            server = subprocess.Popen([*command, *options], stderr=output)
        try:
            client.with_options(max_retries=20).models.list()  # as soon as it listens
            run(client, tokens, 20, seed=1)
            resident = [resident_of(server.pid)]
            began = time.perf_counter()
            done = run(client, tokens, args.seconds, seed=2)
            seconds = time.perf_counter() - began
            resident.append(resident_of(server.pid))
            answers = [one for one in done if one["kind"] == "answer"]
        finally:
            server.terminate()
            server.wait(30)
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as checkers:
            gaps = list(checkers.map(partial(gap_of, path=path), answers))
        tracebacks = log.read_text().count("Traceback")
    seeded = ["seed" in one["body"] for one in answers]
    differ = [(gap, drawn) for gap, drawn in zip(gaps, seeded, strict=True) if gap is not None]
    usage = [one["usage"] for one in answers]
    prompts = sum(one.prompt_tokens for one in usage)
    known = sum(one.prompt_tokens_details.cached_tokens for one in usage)
    written = sum(one.completion_tokens for one in usage)
    record("soak", {
        "seconds": round(seconds, 1),
        "requests": {kind: sum(one["kind"] == kind for one in done) for kind in KINDS},
        "streamed": sum(one["stream"] for one in answers),
        "tokens_written_per_second": round(written / seconds, 1),
        "prompt_tokens_per_second": round(prompts / seconds, 1),
        "share_of_prompt_tokens_from_the_store": round(known / prompts, 3),
        "greedy": len(answers) - sum(seeded),
        "greedy_that_differ": [gap for gap, drawn in differ if not drawn],
        "seeded": sum(seeded),
        "seeded_that_differ": [gap for gap, drawn in differ if drawn],
        "tracebacks_in_the_log": tracebacks,
        "resident_MB_after_warm_up_and_in_the_end": resident,
    })  # fmt: skip


def resident_of(pid: int) -> float:
    return round(int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(pid)])) / 1024, 1)


def run(client: openai.OpenAI, tokens: list[int], seconds: float, seed: int) -> list[Asked]:
    """What each request came to, of clients that ask one after the other."""
    end = time.perf_counter() + seconds

    def one_client(number: int) -> list[Asked]:
        rng, done = random.Random(f"{seed} {number}"), []
        while time.perf_counter() < end:
            done.append(ask(client, tokens, rng))
        return done

    with ThreadPoolExecutor(CLIENTS) as threads:
        return [one for part in threads.map(one_client, range(CLIENTS)) for one in part]


def ask(client: openai.OpenAI, tokens: list[int], rng: random.Random) -> Asked:
    """One request of a random kind; prompts begin at few places, so that many begin alike."""
    start = 5000 * rng.randrange(30)
    body: Asked = {
        "model": rng.choice(["fm-mlx", "fm-mlx", "fm-mlx@book"]),
        "prompt": tokens[start : start + int(3000 ** rng.random())],
        "max_tokens": int(200 ** rng.random()),
    }
    if rng.random() < 0.25:
        body |= {"temperature": 0.9, "top_p": TOP_P, "seed": rng.randrange(1000)}
    (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
    stream = kind == "cut" or rng.random() < 0.34
    done = {"kind": kind, "body": body, "stream": stream, "text": ""}
    if kind == "bad":
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)):
            client.completions.create(**body | rng.choice(BAD))
        return done
    streaming = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    reply: Any = client.completions.create(**body, **streaming)
    left = rng.randrange(8) if kind == "cut" else body["max_tokens"] + 9
    for number, part in enumerate(reply if stream else [reply]):
        if number >= left:
            reply.close()
            return done
        done["text"] += part.choices[0].text if part.choices else ""
    return done | {"usage": part.usage, "kind": "answer"}


def gap_of(one: Asked, path: Path) -> float | None:
    """None if an answer is that given alone; else the noise in logits that makes it another."""
    body, text = one["body"], ""
    memory = Memory.load(path) if body["model"].endswith("@book") else None
    options = {"sampler": sampler_of(body), "memory": memory}
    replies = fm_mlx.stream_generate(*loaded(), body["prompt"], body["max_tokens"], **options)
    for number, reply in enumerate(replies):
        text += reply.text
        if not one["text"].startswith(text):
            for noise in (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2):
                for _ in range(50):
                    sample = sampler_of(body)
                    logits = reply.logprobs + noise * mx.random.normal(reply.logprobs.shape)
                    *_, token = (sample(logits[None]) for _ in range(number + 1))
                    if token.item() != reply.token:
                        return noise
            return float("inf")
    return None if text == one["text"] else float("inf")


def sampler_of(body: Asked) -> Any:
    return sampler_for(body.get("temperature", 0), TOP_P, 0, 0, body.get("seed", 0))


if __name__ == "__main__":
    main()
