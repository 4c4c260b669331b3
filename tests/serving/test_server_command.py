"""The command ``fm-mlx server``: bad options, and a server in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
import uvicorn
from served import PATIENCE, expected

import fm_mlx
from fm_mlx.commands.cli import main
from fm_mlx.memory import Memory

# The command `fm-mlx`, on the device of the other tests.
FM_MLX_ON_CPU = (
    "import sys, mlx.core as mx; mx.set_default_device(mx.cpu); "
    "from fm_mlx.commands.cli import main; sys.exit(main())"
)


@pytest.fixture(scope="module")
def packaged():
    return fm_mlx.load()


@pytest.fixture
def not_run(monkeypatch):
    """A server that is asked for ends at once, in vain."""

    def run(*args, **options):
        raise AssertionError("a server was started")

    monkeypatch.setattr(uvicorn.Server, "run", run)


@pytest.mark.usefixtures("not_run")
class TestBadOptions:
    def line(self, capsys, *options: object) -> str:
        """The line in which the command ends."""
        assert main(["server", *map(str, options)]) == 2
        out, err = capsys.readouterr()
        (line,) = [line for line in err.splitlines() if line.startswith("fm-mlx")]
        assert out == "" and "Traceback" not in err
        return line

    @pytest.mark.parametrize("value", ["", "x", "=x", "x=", "="])
    def test_a_memory_without_name_or_file(self, capsys, value):
        assert "allowed is NAME=FILE" in self.line(capsys, "--memory", value)

    def test_memories(self, capsys, tmp_path, packaged):
        assert "no x.memory in" in self.line(capsys, "--memory", f"x={tmp_path}/x.memory")
        assert "is a folder" in self.line(capsys, "--memory", f"x={tmp_path}")
        (tmp_path / "bad.memory").write_bytes(b"bad")
        self.line(capsys, "--memory", f"x={tmp_path}/bad.memory")
        self.line(capsys, "--memory-dir", tmp_path)
        (tmp_path / "bad.memory").unlink()
        path = tmp_path / "good.memory"
        Memory.empty(*packaged).save(path)
        for name in ("../x", ".x", "x y", "x" * 65):
            assert "allowed are 1 to 64 letters" in self.line(capsys, "--memory", f"{name}={path}")
        twice = ("--memory", f"x={path}", "--memory", f"x={path}")
        assert "there is another memory x" in self.line(capsys, *twice)
        assert "there are 0 memories" in self.line(
            capsys, "--memory", f"x={path}", "--max-memories", 0
        )
        model, tokenizer = fm_mlx.load()
        model.model.norm.weight = model.model.norm.weight * 2
        Memory.empty(model, tokenizer).save(path)
        assert "is of another model" in self.line(capsys, "--memory", f"x={path}")

    @pytest.mark.parametrize(
        ("option", "value"),
        [("--port", 65536), ("--port", -1), ("--port", "x"), ("--temp", -1), ("--temp", "nan"),
         ("--top-p", 2), ("--min-p", -1), ("--top-k", -1), ("--max-tokens", 0),
         ("--prefill-step-size", 0), ("--decode-concurrency", 0), ("--max-queue", 0),
         ("--prompt-cache-bytes", -1), ("--max-body-bytes", 0), ("--log-level", "x"),
         ("--model", "/nowhere")],
    )  # fmt: skip
    def test_values(self, capsys, option, value):
        self.line(capsys, option, value)

    def test_chat_templates(self, capsys, tmp_path):
        assert "no x.jinja in" in self.line(capsys, "--chat-template", tmp_path / "x.jinja")
        assert "is a folder" in self.line(capsys, "--chat-template", tmp_path)
        (tmp_path / "x.jinja").write_bytes(b"\xff")
        assert "is not UTF-8" in self.line(capsys, "--chat-template", tmp_path / "x.jinja")


@contextmanager
def served(folder: Path, *options: object) -> Iterator[tuple[subprocess.Popen, openai.OpenAI]]:
    """``fm-mlx server`` on the packaged model, and a client of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", FM_MLX_ON_CPU, "server", "--port", port, *options]
    log = folder / "server.log"
    # a cache of the hub that is not there
    environment = os.environ | {"HF_HOME": str(folder / "nowhere")}
    with log.open("w") as output:
        process = subprocess.Popen(
            list(map(str, command)), stdout=output, stderr=output, env=environment
        )
    client = openai.OpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=PATIENCE
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                client.models.list()
                break
            except openai.APIConnectionError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
        yield process, client
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait(PATIENCE)


def test_with_the_client_of_openai(packaged, tmp_path):
    """Answers, streams, memories and what is refused; then a stop while an answer is streamed."""
    text = "And it came to pass, that the LORD spake unto Moses, saying, " * 20
    memory = fm_mlx.remember(*packaged, text)
    memory.save(tmp_path / "given.memory")
    template = tmp_path / "chat.jinja"
    template.write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    options = (
        "--memory", f"given={tmp_path}/given.memory", "--chat-template", template,
        "--memory-dir", tmp_path / "kept", "--max-tokens", 12,
    )  # fmt: skip
    prompt, model = "In the beginning", "fm-mlx"
    with served(tmp_path, *options) as (process, client):
        assert [one.id for one in client.models.list()] == ["fm-mlx", "fm-mlx@given"]
        reply = client.completions.create(model=model, prompt=prompt)
        assert reply.choices[0].text == expected(packaged, prompt, 12)
        assert reply.usage is not None and reply.usage.completion_tokens == 12
        reply = client.completions.create(model="fm-mlx@given", prompt=prompt, temperature=0)
        assert reply.choices[0].text == expected(packaged, prompt, 12, memory=memory)

        said = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": prompt}]
        )
        tokens = packaged[1].encode(prompt, add_special_tokens=False)
        assert said.choices[0].message.content == expected(packaged, tokens, 12)
        parts = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": prompt}],
            stream=True,
            stream_options={"include_usage": True},
        )
        *parts, usage = list(parts)
        whole = "".join(part.choices[0].delta.content or "" for part in parts)
        assert whole == said.choices[0].message.content
        # all but the last token of the prompt are known
        details = usage.usage.prompt_tokens_details
        assert details.cached_tokens == len(tokens) - 1

        with pytest.raises(openai.BadRequestError, match="top_p is 3"):
            client.completions.create(model=model, prompt=prompt, top_p=3)
        with pytest.raises(openai.NotFoundError, match="served is 'fm-mlx'"):
            client.completions.create(model="gpt-4", prompt=prompt)

        # one who leaves a long reading, and one who goes on with it
        body = {"name": "long", "text": text * 40}
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.3).post("/memories", body=body, cast_to=object)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                told = client.post("/memories", body=body, cast_to=object)
                break
            except openai.ConflictError:  # what was read is still being saved
                assert time.monotonic() < deadline
        assert told["texts"][0]["complete"]

        parts = client.completions.create(model=model, prompt=prompt, stream=True, max_tokens=150)
        pieces = [next(parts).choices[0].text]
        process.send_signal(signal.SIGTERM)
        pieces += [part.choices[0].text for part in parts]
        assert "".join(pieces) == expected(packaged, prompt, 150)
        assert process.wait(PATIENCE) == -signal.SIGTERM
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["long.memory"]
    kept = Memory.load(tmp_path / "kept" / "long.memory")
    whole = fm_mlx.remember(*packaged, text * 40)
    assert (kept.tokens_seen, kept.texts[0].sha256) == (whole.tokens_seen, whole.texts[0].sha256)
