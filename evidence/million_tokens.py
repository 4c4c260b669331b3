"""A million tokens: killed, saved and gone on with to the same bits; ten million: nothing grows.

    python evidence/million_tokens.py --text bible.txt

`python examples/pretrain.py --write-text bible.txt` writes a text of 1.17 million tokens.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from figures import record

import fm_mlx
from fm_mlx.memory import Memory

KILLS = 10
SYNTHETIC = 10_000_000
SAMPLES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 text")
    parser.add_argument("--go-on", type=Path, help=argparse.SUPPRESS)  # the new process
    args = parser.parse_args()
    if args.go_on is not None:
        print(json.dumps(going_on(Memory.load(args.go_on))))
        return
    with tempfile.TemporaryDirectory() as folder:
        whole, figures = never_stopped(args.text)
        path = Path(folder) / "whole.memory"
        whole.save(path)
        again = subprocess.run(
            [sys.executable, __file__, "--text", args.text, "--go-on", path],
            capture_output=True,
            text=True,
            check=True,
        )
        here, there = going_on(whole), json.loads(again.stdout)
        killed, saved = killed_again_and_again(args.text, Path(folder) / "killed.memory")
        record(
            "million_tokens",
            {
                "tokens": whole.tokens_seen,
                "file bytes": path.stat().st_size,
                "snapshots": len(whole.snapshots),
                "bit-equal in a new process": here == there,
                "text that follows": here["text"],
                "while reading": figures,
                "tokens saved at each kill": saved,
                "bit-equal after the kills": bits(killed) == bits(whole),
                "ten million": ten_million(),
            },
        )


def never_stopped(text: Path) -> tuple[Memory, list[dict[str, Any]]]:
    """Read a text in one go, and what it takes at every tenth."""
    figures: list[dict[str, Any]] = []
    size = text.stat().st_size

    def look(memory: Memory) -> None:
        if memory.texts[-1].bytes > len(figures) * size / SAMPLES:
            figures.append(held(memory))

    memory = fm_mlx.remember(*fm_mlx.load(), text, progress=look)
    return memory, [*figures, held(memory)]


def going_on(memory: Memory) -> dict[str, Any]:
    """The greedy text after a memory, and a digest of all its logits."""
    model, tokenizer = fm_mlx.load()
    digest, text = hashlib.sha256(), []
    for response in fm_mlx.stream_generate(model, tokenizer, "And", 200, memory=memory):
        digest.update(np.array(response.logprobs).tobytes())
        text.append(response.text)
    return {"text": "".join(text)[:200], "logits": digest.hexdigest()}


def killed_again_and_again(text: Path, path: Path) -> tuple[Memory, list[int]]:
    """Read a text with a command that is killed ten times on the way."""
    read = [sys.executable, "-m", "fm_mlx", "memory", "read", text, "-o", path]
    pause = random.Random(0)
    saved: list[int] = []
    for _ in range(KILLS):
        process = subprocess.Popen([*read, "--save-every", "1"], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 600
        while tokens_in(path) <= (saved[-1] if saved else 0):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(pause.uniform(0, 2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        saved.append(tokens_in(path))
    subprocess.run(read, check=True, stdout=subprocess.DEVNULL)
    return Memory.load(path), saved


def tokens_in(path: Path) -> int:
    return Memory.load(path).tokens_seen if path.exists() else 0


def bits(memory: Memory) -> str:
    """A digest of all states and of what is known of the texts."""
    digest = hashlib.sha256()
    for one in (memory, *map(memory.at, memory.snapshots)):
        digest.update(np.array(one.state).tobytes())
        for text in one.texts:
            digest.update(f"{text.sha256} {text.bytes} {text.beyond} {text.tokens}".encode())
            digest.update(text.log_kept.tobytes())
    return digest.hexdigest()


def ten_million() -> list[dict[str, Any]]:
    """Read ten million tokens that are made up, and what it takes at every tenth."""
    figures: list[dict[str, Any]] = []
    model, tokenizer = fm_mlx.load()
    for memory in Memory.empty(model, tokenizer).read(model, tokenizer, verses()):
        if memory.tokens_seen >= (len(figures) + 1) * SYNTHETIC / SAMPLES:
            figures.append(held(memory))
            if len(figures) == SAMPLES:
                break
    return figures


def verses() -> Iterator[str]:
    """Lines of words at random, without end."""
    words = ["the LORD", "said", "unto him", "all", "of", "his house", "went", "into", "the land"]
    chosen = random.Random(0)
    while True:
        yield " ".join(chosen.choices(words, k=12)) + ".\n"


def held(memory: Memory) -> dict[str, Any]:
    """What this process holds now: MLX's peak since the last look, arrays, handles, pages."""
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    figures = {
        "tokens": memory.tokens_seen,
        "peak MB": round(mx.get_peak_memory() / 1e6, 2),
        "active MB": round(mx.get_active_memory() / 1e6, 2),
        "resident MB": round(resident / 1e6, 1),
        "objects": len(gc.get_objects()),
        "open files": len(os.listdir("/proc/self/fd")),
        "snapshots": len(memory.snapshots),
    }
    mx.reset_peak_memory()
    return figures


if __name__ == "__main__":
    main()
