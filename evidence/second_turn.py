"""The second turn of a conversation of 60,000 tokens: our server, and mlx-lm's on a mamba2.

    python evidence/second_turn.py

Both models have 8 million random weights and a vocabulary of words, so that an answer that is sent
back has the tokens it had. Of each turn: seconds, tokens of the prompt, and how many of them had
been read for an earlier turn. Last the first message is sent once more, with another end.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import mlx.core as mx
from figures import record
from mlx.utils import tree_flatten
from openai import OpenAI
from tokenizers import Tokenizer, models, pre_tokenizers

from fm_mlx.perf.bench import FM_CONFIG, MAMBA2_CONFIG, VOCAB_SIZE, Arm, build_arms

ANSWER = 32
TURN = 20
# Words at the end of the first message that are others when it is edited.
EDITED = 1000
TEMPLATE = (
    "{% for message in messages %} {{ message.role }} {{ message.content }} </s>{% endfor %}"
    " assistant "
)
COMMANDS = {
    "fm-mlx server, fm": ("fm", ["-m", "fm_mlx", "server"]),
    "mlx_lm.server, mamba2": ("mamba2", ["-m", "mlx_lm", "server"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=60_000, help="of the first turn (60,000)")
    args = parser.parse_args()
    configs = {"fm": FM_CONFIG, "mamba2": MAMBA2_CONFIG}
    arms = {arm.name: arm for arm in build_arms(4)}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for title, (name, command) in COMMANDS.items():
            model = Path(folder) / name
            write_model(model, arms[name], configs[name])
            with served(model, command) as client:
                found[title] = conversation(client, args.tokens)
            print(title, json.dumps(found[title]), flush=True)
    record("second_turn", found)


def conversation(client: OpenAI, tokens: int) -> dict[str, dict[str, Any]]:
    """Three turns, each of which sends all that was said before; then the first, edited."""
    chosen = random.Random(0)
    words = [f"w{i}" for i in range(10, VOCAB_SIZE)]
    first = chosen.choices(words, k=tokens)
    second, third = (chosen.choices(words, k=TURN) for _ in range(2))
    edited = [*first[:-EDITED], *chosen.choices(words, k=EDITED)]
    messages: list[Any] = []
    turns = {}
    for name, message in (("first", first), ("second", second), ("third", third)):
        messages.append({"role": "user", "content": " ".join(message)})
        turns[name], answer = turn(client, messages)
        messages.append({"role": "assistant", "content": answer})
    turns["first, edited"], _ = turn(client, [{"role": "user", "content": " ".join(edited)}])
    return turns


def turn(client: OpenAI, messages: list[Any]) -> tuple[dict[str, Any], str]:
    """What an answer took, and the answer."""
    start = time.perf_counter()
    reply = client.chat.completions.create(
        model="default_model", messages=messages, max_tokens=ANSWER, temperature=0
    )
    seconds = time.perf_counter() - start
    usage = reply.usage
    cached = usage.prompt_tokens_details.cached_tokens
    figures = {
        "seconds": round(seconds, 2),
        "prompt tokens": usage.prompt_tokens,
        "cached": cached,
        "read": usage.prompt_tokens - cached,
    }
    return figures, reply.choices[0].message.content


@contextmanager
def served(model: Path, command: list[str]) -> Iterator[OpenAI]:
    """A client of a server that runs inside a ``with`` block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with (model / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *command, "--model", model, "--port", port], stdout=log, stderr=log
        )
    try:
        client = OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=3600, max_retries=0
        )
        for _ in range(600):
            try:
                urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except URLError:
                assert process.poll() is None, (model / "server.log").read_text()
                time.sleep(0.1)
        yield client
    finally:
        process.terminate()
        process.wait(30)


def write_model(folder: Path, arm: Arm, config: dict[str, Any]) -> None:
    """A model with a vocabulary of words and a chat template."""
    folder.mkdir()
    special = ["<unk>", "</s>", "user", "assistant", "system"]
    words = [*special, *(f"w{i}" for i in range(len(special), VOCAB_SIZE))]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"eos_token": "</s>", "unk_token": "<unk>", "chat_template": TEMPLATE}
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (folder / "config.json").write_text(json.dumps(config))
    weights = dict(tree_flatten(arm.model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})


if __name__ == "__main__":
    main()
