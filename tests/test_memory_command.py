"""``fm-mlx memory``: what a user types, sees and can break off."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time

import mlx.core as mx
import numpy as np
import pytest
from signals import hear_interrupts

import fm_mlx
from fm_mlx import memory as memories
from fm_mlx.commands import cli
from fm_mlx.memory.left import parts_left

TEXT = "".join(f"{i} In the beginning God created the heaven and the earth.\n" for i in range(900))


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def made(book, tmp_path):
    path = tmp_path / "book.memory"
    assert cli.main(["memory", "read", str(book), "-o", str(path)]) == 0
    return path


def refused(capsys, argv, said):
    assert cli.main([str(a) for a in argv]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err


def test_read_and_ask(book, tmp_path, capsys):
    made = tmp_path / "book.memory"
    assert cli.main(["memory", "read", str(book), "-o", str(made)]) == 0
    assert "tokens-per-sec" in capsys.readouterr().out
    model, tokenizer = fm_mlx.load()
    memory = memories.remember(model, tokenizer, book)
    assert mx.array_equal(memories.load(made).state, memory.state)
    options = ["-p", "And", "-m", "12", "--verbose", "False"]
    assert cli.main(["generate", "--memory", str(made), *options]) == 0
    expected = fm_mlx.generate(model, tokenizer, "And", max_tokens=12, memory=memory)
    assert capsys.readouterr().out == expected + "\n"


def test_standard_input_and_append(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"And more.")))
    assert cli.main(["memory", "append", str(made), "-"]) == 0
    memory = memories.load(made)
    assert [text.name for text in memory.texts] == ["book.txt", "standard input"]


def test_rewind(book, made, tmp_path, capsys):
    out = tmp_path / "earlier.memory"
    argv = ["memory", "rewind", made, 5000, "-o", out]
    refused(capsys, argv, "no snapshot after 5,000 tokens, and no source")
    assert cli.main([*map(str, argv), "--source", str(book)]) == 0
    assert memories.load(out).tokens_seen == 5000
    refused(capsys, [*argv, "--source", book], "is there already")


def test_info(made, capsys):
    assert cli.main(["memory", "info", str(made)]) == 0
    out = capsys.readouterr().out
    memory = memories.load(made)
    assert f"book.txt: {memory.tokens_seen:,} tokens, bytes 0 to {len(TEXT):,}, sha256" in out
    assert "1 to 2,048" in out
    total = sum(part.share for part in parts_left(memory))
    np.testing.assert_allclose(total, 1, atol=1e-12)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["read", "nowhere.txt", "-o", "x"], "no such file"),
        (["append", "nowhere.memory", "BOOK"], "no nowhere.memory in"),
        (["info", "BOOK"], "is not a whole safetensors file"),
        (["read", "BOOK", "-o", "MADE"], "is there already: give --overwrite"),
        (["read", "BOOK"], "--output"),
        (["rewind", "MADE", "-3", "-o", "x"], "'-3'; allowed are whole numbers from 0"),
        (["rewind", "MADE", "9999999", "-o", "x"], "allowed are 0 to"),
        (["read", "BOOK", "-o", "y", "--save-every", "often"], "'often'"),
    ],
)
def test_bad_input(made, book, capsys, monkeypatch, tmp_path, argv, said):
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    names = {"BOOK": book, "MADE": made}
    refused(capsys, ["memory", *[names.get(a, a) for a in argv]], said)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_reading_that_is_broken_off_goes_on_to_the_same_bits(tmp_path, number):
    book, path = tmp_path / "long.txt", tmp_path / "long.memory"
    book.write_text(TEXT * 10)
    command = [sys.executable, "-m", "fm_mlx", "memory", "read", str(book), "-o", str(path)]
    process = subprocess.Popen(
        [*command, "--save-every", "0"], stdout=subprocess.PIPE, preexec_fn=hear_interrupts
    )
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    status = process.wait(60)
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    kept = memories.load(path)
    assert kept.tokens_seen > 0
    assert not kept.texts[-1].complete
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"Going on after {kept.tokens_seen:,} tokens of long.txt" in again.stderr
    whole = memories.remember(*fm_mlx.load(), book)
    memory = memories.load(path)
    assert mx.array_equal(memory.state, whole.state)
    assert np.array_equal(memory.log_kept, whole.log_kept)
    assert memory.texts[-1].sha256 == whole.texts[-1].sha256
