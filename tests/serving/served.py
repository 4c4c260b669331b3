"""A small model whose tokens are words, and servers of it in this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from cases import REAL, TINY, tiny_model
from laws.decoding import BUFFERED
from mlx.utils import tree_flatten
from mlx_lm.sample_utils import greedy_sampler
from starlette.testclient import TestClient
from tokenizers import Tokenizer, models, pre_tokenizers

import fm_mlx
from fm_mlx.memory import Memory, PrefixStore
from fm_mlx.serving.app import application
from fm_mlx.serving.engine import Completion, Ended, Engine, Event, Failed, Remembered, Written
from fm_mlx.serving.named import NamedMemories
from fm_mlx.serving.settings import Settings

CONFIG = {
    **TINY,
    **BUFFERED,
    # so many that a word reads rows of those before it, not its own only
    "num_active_states": 32,
    # of a small vocabulary a random model soon repeats a few words
    "vocab_size": 2000,
    "tie_word_embeddings": False,
}

# One message after the other, with no word between them.
PLAIN = "{% for message in messages %}{{ message.content }} {% endfor %}"

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"

# Of anything that is waited for, in seconds; it takes a few at most.
PATIENCE = 90


def word_model(folder: Path) -> Path:
    """A model with two buffers whose tokens are words: text goes back into the same tokens."""
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


def some_words(count: int, seed: int) -> str:
    numbers = np.random.default_rng(seed).integers(2, CONFIG["vocab_size"], count)
    return " ".join(f"w{i}" for i in numbers)


class Heard:
    """What an engine tells of some work."""

    def __init__(self):
        self.events: list[Event] = []
        self._moved = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._moved:
            self.events.append(event)
            self._moved.notify_all()

    def first(self, kind: type) -> Any:
        """The first event of a kind, as soon as there is one."""

        def found() -> Event | None:
            return next((event for event in self.events if isinstance(event, kind)), None)

        with self._moved:
            assert self._moved.wait_for(found, PATIENCE), self.events
        return found()

    def last(self) -> Ended | Failed | Remembered:
        """The event that ends the work."""

        def ended() -> bool:
            if not self.events:
                return False
            last = self.events[-1]
            return isinstance(last, Ended | Failed) or (isinstance(last, Remembered) and last.ended)

        with self._moved:
            assert self._moved.wait_for(ended, PATIENCE), self.events
        return self.events[-1]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Written))


def work_on(
    loaded: tuple, prompt: str, max_tokens: int, **options: Any
) -> tuple[Completion, Heard]:
    """Work for an engine, and what will be heard of it."""
    memory = options.pop("memory", None) or Memory.empty(*loaded)
    heard = Heard()
    root = options.pop("root", b"")
    options = {"sampler": greedy_sampler, "logits_processors": [], "stop": ()} | options
    tokens = loaded[1].encode(prompt)
    return Completion(tokens, root, memory.state, max_tokens, **options, tell=heard), heard


@contextmanager
def engine_of(loaded: tuple, cache_bytes: int = 1 << 30, **options: Any) -> Iterator[Engine]:
    """An engine that runs."""
    engine = Engine(*loaded, PrefixStore(cache_bytes), **options)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


@contextmanager
def client_of(
    loaded: tuple, folder: Path | None = None, most: int = 64, step: int = 512, **settings: Any
) -> Iterator[TestClient]:
    """A client of a server in this process, which does not run before and after."""
    mx.eval(loaded[0].parameters())
    memories = NamedMemories(*loaded, most, folder)
    engine = Engine(*loaded, PrefixStore(1 << 30), step)
    app = application(*loaded, engine, memories, Settings(**{"name": "words"} | settings))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def completion(client: TestClient, prompt: Any, count: int = 5, **more: Any) -> tuple[str, int]:
    """The greedy text, and how many tokens of the prompt had been read before."""
    body = {"prompt": prompt, "max_tokens": count, **more}
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    reply = response.json()
    cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
    return reply["choices"][0]["text"], cached


def refusal(response: Any, status: int | range = range(400, 500)) -> str:
    """The one line that says why there is no answer."""
    allowed = status if isinstance(status, range) else [status]
    assert response.status_code in allowed, response.text
    content = response.json()
    assert set(content) == {"error"}
    assert set(content["error"]) == {"message", "type", "param", "code"}
    line = content["error"]["message"]
    assert line and "\n" not in line and len(line) < 500
    return line


def expected(loaded: tuple, prompt: str, count: int, **options: Any) -> str:
    """The text that is generated when nothing else is."""
    return fm_mlx.generate(*loaded, prompt, max_tokens=count, **options)
