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
from fm_mlx import loading
from fm_mlx.commands import cli
from fm_mlx.memory import Memory, remember
from fm_mlx.memory.left import parts_left, texts_left

TEXT = "".join(f"{i} In the beginning God created the heaven and the earth.\n" for i in range(900))


@pytest.fixture(autouse=True)
def small_model(reader, monkeypatch):
    """The model that is taken unless another is named reads fast."""
    monkeypatch.setattr(loading, "PRETRAINED", reader)


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
    memory = remember(model, tokenizer, book)
    assert mx.array_equal(Memory.load(made).state, memory.state)
    options = ["-p", "And", "-m", "12", "--verbose", "False"]
    assert cli.main(["generate", "--memory", str(made), *options]) == 0
    expected = fm_mlx.generate(model, tokenizer, "And", max_tokens=12, memory=memory)
    assert capsys.readouterr().out == expected + "\n"
    assert cli.main(["memory", "ask", str(made), *options[1:]]) == 0
    assert capsys.readouterr().out == expected + "\n"


def test_standard_input_and_append(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"And more.")))
    assert cli.main(["memory", "append", str(made), "-"]) == 0
    memory = Memory.load(made)
    assert [text.name for text in memory.texts] == ["book.txt", "standard input"]


def test_rewind(book, made, tmp_path, capsys):
    out = tmp_path / "earlier.memory"
    argv = ["memory", "rewind", made, 5000, "-o", out]
    refused(
        capsys,
        argv,
        "and no text to read again; wanted are book.txt",
    )
    assert cli.main([*map(str, argv), "--source", str(book)]) == 0
    assert Memory.load(out).tokens_seen == 5000
    refused(capsys, [*argv, "--source", book], "is there already")


def test_rewind_to_before_a_text(book, made, tmp_path, capsys):
    letter, out = tmp_path / "letter.txt", tmp_path / "earlier.memory"
    letter.write_text("And more.")
    assert cli.main(["memory", "append", str(made), str(letter)]) == 0
    tokens = Memory.load(made).texts[0].tokens
    argv = ["memory", "rewind", made, "--before", "letter.txt", "-o", out]
    assert cli.main(list(map(str, argv))) == 0
    assert Memory.load(out).tokens_seen == tokens
    refused(capsys, [*argv[:4], "other", *argv[5:-1], "x"], "no text of the memory")


def test_diff(made, tmp_path, capsys):
    letter, longer = tmp_path / "letter.txt", tmp_path / "longer.memory"
    letter.write_text("And more.")
    longer.write_bytes(made.read_bytes())
    assert cli.main(["memory", "diff", str(made), str(longer)]) == 0
    assert cli.main(["memory", "append", str(longer), str(letter)]) == 0
    capsys.readouterr()
    assert cli.main(["memory", "diff", str(made), str(longer)]) == 1
    out = capsys.readouterr().out
    assert "Texts in common: 1" in out
    assert f"Only in {longer}: letter.txt: " in out
    far = np.array(Memory.load(made).state - Memory.load(longer).state)
    assert f"{np.linalg.norm(far[0]):.3g}" in out


def test_8_bits(book, made, tmp_path):
    small = tmp_path / "small.memory"
    assert cli.main(["memory", "read", str(book), "-o", str(small), "--bits", "8"]) == 0
    assert small.stat().st_size < 0.5 * made.stat().st_size


def test_plot(made, tmp_path, capsys):
    picture = tmp_path / "left.png"
    assert cli.main(["memory", "info", str(made), "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    refused(capsys, ["memory", "info", made, "--plot", tmp_path / "left.exe"], "exe")


def test_what_is_left_of_each_text(made, tmp_path):
    letter = tmp_path / "letter.txt"
    letter.write_text("And more. " * 20)
    assert cli.main(["memory", "append", str(made), str(letter)]) == 0
    memory = Memory.load(made)
    before, book, last = texts_left(memory)
    assert (book.last, last.last) == (memory.texts[0].tokens, memory.tokens_seen)
    np.testing.assert_allclose(before.share + book.share + last.share, 1, atol=1e-12)
    alone = remember(*fm_mlx.load(), "And more. " * 20).log_kept
    # the same tokens route otherwise after another text, but not much
    np.testing.assert_allclose(last.share.mean(), (1 - np.exp(alone)).mean(), atol=0.1)


def test_info(made, capsys):
    assert cli.main(["memory", "info", str(made)]) == 0
    out = capsys.readouterr().out
    memory = Memory.load(made)
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


@pytest.fixture(scope="module")
def read_whole(reader, tmp_path_factory):
    """A longer text, and the memory of it."""
    book = tmp_path_factory.mktemp("long") / "long.txt"
    book.write_text(TEXT * 10)
    return book, remember(*fm_mlx.load(reader), book)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_reading_that_is_broken_off_goes_on_to_the_same_bits(
    tmp_path, reader, read_whole, number
):
    book, whole = read_whole
    path = tmp_path / "long.memory"
    command = [sys.executable, "-m", "fm_mlx", "memory", "read", str(book), "-o", str(path)]
    command += ["--model", str(reader)]
    process = subprocess.Popen(
        [*command, "--save-every", "0"], stdout=subprocess.PIPE, preexec_fn=hear_interrupts
    )
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    status = process.wait(60)
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    kept = Memory.load(path)
    assert kept.tokens_seen > 0
    assert not kept.texts[-1].complete
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"Going on after {kept.tokens_seen:,} tokens of long.txt" in again.stderr
    memory = Memory.load(path)
    assert mx.array_equal(memory.state, whole.state)
    assert np.array_equal(memory.log_kept, whole.log_kept)
    assert memory.texts[-1].sha256 == whole.texts[-1].sha256
