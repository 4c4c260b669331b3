"""mlx-lm's own ways to generate, on a memory of two buffers, give the dense step's text."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm import stream_generate
from mlx_lm.models.cache import ArraysCache, load_prompt_cache, save_prompt_cache

import fm_mlx

ROWS = 1024  # of 64 columns: more than stays dense
PATIENCE = 60  # seconds
PROMPTS = (
    "the river writes",
    "a long text of stone and light",
    "memory reads the state of the row",
)


@pytest.fixture
def folder(changed) -> Path:
    mx.random.seed(11)
    routers = {
        f"model.layers.{i}.memory.router.weight": mx.random.normal((ROWS + 2, 64)) for i in (0, 1)
    }
    return changed({"num_memory_states": ROWS}, routers)


@pytest.fixture
def buffered(folder):
    model, tokenizer = fm_mlx.load(folder)
    assert len(model.make_cache()[0].cache) == 6
    return model, tokenizer


def dense_cache(model) -> list[ArraysCache]:
    return [ArraysCache(size=1) for _ in model.layers]


def text(loaded, prompt: str, cache=None, count: int = 20) -> str:
    """Greedy, by mlx-lm's stream_generate."""
    responses = stream_generate(*loaded, prompt, max_tokens=count, prompt_cache=cache)
    written = "".join(response.text for response in responses)
    assert written
    return written


@pytest.mark.parametrize("prompt", PROMPTS)
def test_stream_generate(buffered, prompt):
    assert text(buffered, prompt) == text(buffered, prompt, dense_cache(buffered[0]))


def test_saved_prompt_cache(buffered, tmp_path):
    """Read and write, save, load, go on: the text of who never stopped, and of the dense step."""
    model = buffered[0]
    kept, dense = model.make_cache(), dense_cache(model)
    assert text(buffered, PROMPTS[0], kept) == text(buffered, PROMPTS[0], dense)
    path = str(tmp_path / "cache.safetensors")
    save_prompt_cache(path, kept)
    wanted = text(buffered, PROMPTS[1], dense)
    assert text(buffered, PROMPTS[1], kept) == wanted
    loaded = load_prompt_cache(path)
    assert len(loaded[0].cache) == 6
    assert text(buffered, PROMPTS[1], loaded) == wanted


@pytest.fixture
def server(folder, tmp_path):
    """`fm-mlx server` on a free port; gives a function that completes a prompt."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "fm_mlx",
        "server",
        "--model",
        str(folder),
        "--port",
        str(port),
    ]
    with open(tmp_path / "server.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)

    def post(prompt: str, count: int = 20) -> str:
        body = {"prompt": prompt, "max_tokens": count, "temperature": 0}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)["choices"][0]["text"]

    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError):
                log_text = (tmp_path / "server.log").read_text()
                assert process.poll() is None and time.monotonic() < deadline, log_text
                time.sleep(0.1)
        yield post
    finally:
        process.terminate()
        try:
            process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()


def test_server(server, buffered):
    """One after another, one that begins with an earlier prompt, and three at once."""
    longer = PROMPTS[0] + " of the long state"
    prompts = [*PROMPTS, longer]
    wanted = [text(buffered, prompt, dense_cache(buffered[0])) for prompt in prompts]
    assert [server(prompt) for prompt in prompts] == wanted
    with ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(server, prompts)) == wanted
