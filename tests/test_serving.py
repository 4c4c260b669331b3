"""Double-buffered memory through mlx-lm's generation, saved caches and server = the dense form."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from cases import REAL, TINY, tiny_model
from laws import BUFFERED
from mlx.utils import tree_flatten
from mlx_lm import stream_generate
from mlx_lm.models.cache import ArraysCache, load_prompt_cache, save_prompt_cache
from tokenizers import Tokenizer, models, pre_tokenizers

import fm_mlx

CONFIG = {
    **TINY,
    **BUFFERED,
    # so many that a word reads rows of those before it, not its own only
    "num_active_states": 32,
    # of a small vocabulary a random model soon repeats a few words
    "vocab_size": 2000,
    "tie_word_embeddings": False,
}

# Of a server that starts, and of one reply, in seconds; both take a few at most.
PATIENCE = 90

# The command `fm-mlx`, on the device of the other tests.
FM_MLX_ON_CPU = (
    "import sys, mlx.core as mx; mx.set_default_device(mx.cpu); "
    "from fm_mlx.commands.cli import main; sys.exit(main())"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model with two buffers whose tokens are words: text goes back into the same tokens."""
    folder = tmp_path_factory.mktemp("buffered")
    words = ["<unk>", "</s>", *(f"w{i}" for i in range(2, CONFIG["vocab_size"]))]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    config = {"model_type": "factorization_memory", **CONFIG}
    (folder / "config.json").write_text(json.dumps(config))
    weights = dict(tree_flatten(tiny_model(REAL, **CONFIG).parameters()))
    # far apart enough that rounding does not change which token is the likeliest
    weights["lm_head.weight"] = mx.random.normal(weights["lm_head.weight"].shape)
    # never the end: every text has the length that was asked for
    weights["lm_head.weight"][:2] = 0
    # what was read is as large as the token itself: the text depends on it
    for name in weights:
        if name.endswith("out_proj.weight"):
            weights[name] = 5 * weights[name]
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    return folder


@pytest.fixture(scope="module")
def buffered(folder):
    """(model, tokenizer) of the folder; the model's own cache has two buffers."""
    model, tokenizer = fm_mlx.load(folder)
    cache = model.make_cache()
    assert [len(layer.cache) for layer in cache] == [6, 6]
    return model, tokenizer


def dense_cache(model) -> list[ArraysCache]:
    return [ArraysCache(size=1) for _ in model.layers]


def some_words(count: int, seed: int) -> str:
    numbers = np.random.default_rng(seed).integers(2, CONFIG["vocab_size"], count)
    return " ".join(f"w{i}" for i in numbers)


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


@dataclass(frozen=True)
class Server:
    """A server on this machine."""

    port: int

    def is_healthy(self) -> bool:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except ConnectionError:
            return False
        finally:
            connection.close()

    def pieces(self, prompt: str, count: int) -> Iterator[str]:
        """The greedy text, as it comes."""
        connection = self._posted(prompt, count, stream=True)
        try:
            for line in connection.getresponse():
                data = line.decode().strip()
                # lines that begin with a colon tell how much of the prompt was read
                if data.startswith("data: {"):
                    yield json.loads(data.removeprefix("data: "))["choices"][0]["text"]
        finally:
            connection.close()

    def completion(self, prompt: str, count: int) -> tuple[str, int]:
        """The greedy text, and how many tokens of the prompt the server had read before."""
        connection = self._posted(prompt, count)
        try:
            response = connection.getresponse()
            content = response.read()
            assert response.status == 200, content
        finally:
            connection.close()
        reply = json.loads(content)
        cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
        return reply["choices"][0]["text"], cached

    def posted(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to a request."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _posted(self, prompt: str, count: int, stream: bool = False) -> HTTPConnection:
        body = {"prompt": prompt, "max_tokens": count, "temperature": 0, "stream": stream}
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        return connection


@pytest.fixture(scope="module")
def server(folder) -> Iterator[Server]:
    """``fm-mlx server`` on the folder, in a process of its own that can be ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", FM_MLX_ON_CPU, "server", "--model", folder, "--port", port]
    log = folder / "server.log"
    # a cache of the hub that is not there
    environment = os.environ | {"HF_HOME": str(folder / "nowhere")}
    with log.open("w") as output:
        process = subprocess.Popen(
            list(map(str, command)), stdout=output, stderr=output, env=environment
        )
    try:
        server, deadline = Server(port), time.monotonic() + PATIENCE
        while not server.is_healthy():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=10)


class TestServer:
    def test_prompts_in_turn(self, buffered, server):
        """Two prompts, then one that goes on from the first: its cache is taken up again."""

        def wanted(prompt):
            return generated(buffered, prompt, 20, dense_cache(buffered[0]))

        first, second = some_words(40, seed=4), some_words(25, seed=5)
        reply, cached = server.completion(first, 20)
        assert (reply, cached) == (wanted(first), 0)
        assert server.completion(second, 20) == (wanted(second), 0)
        # the server keeps the state after a reply, not that after a prompt
        longer = f"{first} {reply} {some_words(5, seed=136)}"
        again, cached = server.completion(longer, 20)
        assert cached >= 40 + 19
        assert again == wanted(longer)

    def test_prompts_at_once(self, buffered, server):
        """Requests that come while one is served, of other lengths."""

        def wanted(prompt, count):
            return generated(buffered, prompt, count, dense_cache(buffered[0]))

        def reply(asked):
            return server.completion(*asked)[0]

        asked = [(some_words(3, seed=8), 40), (some_words(30, seed=9), 20)]
        # mlx-lm's server looks for requests twice a second: it finds these two together
        long = some_words(11, seed=7)
        pieces = server.pieces(long, 150)
        text = next(pieces)
        with ThreadPoolExecutor(len(asked)) as threads:
            replies = list(threads.map(reply, asked, timeout=2 * PATIENCE))
        text += "".join(pieces)
        assert replies == [wanted(*each) for each in asked]
        assert text == wanted(long, 150)

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/completions", {"prompt": ""}),
            ("/v1/completions", {"prompt": " "}),
            ("/v1/completions", {"prompt": 3}),
            ("/v1/completions", {"prompt": ["w3"]}),
            ("/v1/completions", {}),
            ("/v1/completions", {"prompt": "w3", "stop": [3]}),
            ("/v1/completions", {"prompt": "w3", "stop": {"a": 1}}),
            ("/v1/completions", {"prompt": "w3", "max_tokens": 0}),
            ("/v1/completions", {"prompt": "w3", "model": "/etc"}),
            ("/v1/completions", {"prompt": "w3", "adapters": "/etc"}),
            ("/v1/completions", {"prompt": "w3", "logit_bias": {"x": 1}}),
            ("/v1/completions", []),
            ("/v1/completions", None),
            ("/v1/chat/completions", {"messages": []}),
            ("/v1/chat/completions", {"messages": "x"}),
            ("/v1/chat/completions", {"messages": [3]}),
            ("/v1/chat/completions", {"messages": [{"role": 3, "content": "w3"}]}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": 3}]}),
        ],
    )
    def test_bad_requests_are_refused_and_the_next_is_answered(self, buffered, server, path, body):
        text = b"\xff{" if body is None else json.dumps(body).encode()
        status, reply = server.posted(path, text)
        assert 400 <= status < 500, reply
        assert json.loads(reply)["error"].count("\n") == 0
        wanted = generated(buffered, "w5 w6", 3, dense_cache(buffered[0]))
        assert server.completion("w5 w6", 3)[0] == wanted

    def test_a_prompt_that_was_read_before_as_a_whole(self, buffered, server):
        """Prompt and completion of an earlier request: nothing of it is left to read."""
        prompt = some_words(12, seed=20)
        reply, _ = server.completion(prompt, 5)
        wanted = generated(buffered, f"{prompt} {reply}", 5, dense_cache(buffered[0]))
        assert server.completion(f"{prompt} {reply}", 5)[0] == wanted
        assert server.completion(f"{prompt} {reply}", 5)[0] == wanted

    def test_what_a_request_raises_while_it_is_served(self, buffered, server):
        """Of an option that the sampler only looks at when it samples."""
        body = {"prompt": "w3 w4", "max_tokens": 3, "temperature": 1, "top_k": 10**6}
        status, reply = server.posted("/v1/completions", json.dumps(body).encode())
        assert status >= 400, reply
        wanted = generated(buffered, "w5 w6", 3, dense_cache(buffered[0]))
        assert server.completion("w5 w6", 3)[0] == wanted
        assert server.is_healthy()

    def test_models(self, server, folder):
        """The model that is loaded, though there is no cache of the hub."""
        connection = HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        connection.request("GET", "/v1/models")
        response = connection.getresponse()
        assert response.status == 200
        (model,) = json.loads(response.read())["data"]
        assert model["id"] == str(folder.resolve())
