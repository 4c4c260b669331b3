"""``fm-mlx eval context``: that pieces, windows and batches change no loss, and what is printed."""

from __future__ import annotations

import csv
import gc
import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from small_models import CONFIGS, VOCAB, build
from tiny import some_text

import fm_mlx
from fm_mlx.commands import cli
from fm_mlx.evaluation import losses
from fm_mlx.evaluation.context import Reading, by_position, contexts_that_fit, position_buckets
from fm_mlx.evaluation.context import measure as measure_contexts
from fm_mlx.evaluation.losses import losses_in_windows
from fm_mlx.evaluation.texts import read_tokens
from fm_mlx.finite import NotFiniteError


def some_tokens(length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, length).astype(np.int32)


def whole_pass(model: nn.Module, tokens: np.ndarray) -> np.ndarray:
    """The oracle: losses (T,) of tokens[1:] from one forward pass without a cache."""
    logits = np.array(model(mx.array(tokens[None, :-1])).astype(mx.float32), np.float64)[0]
    top = logits.max(axis=-1)
    total = top + np.log(np.exp(logits - top[:, None]).sum(axis=-1))
    return total - logits[np.arange(len(logits)), tokens[1:]]


def pieced(model: nn.Module, tokens: np.ndarray, context: int, **more) -> np.ndarray:
    """Losses (windows, context) from the pieces."""
    found: list[dict[int, np.ndarray]] = []
    for place, piece in losses_in_windows(model, tokens, context, **more):
        if place == 0:
            found.append({})
        found[-1][place] = piece
    return np.concatenate([np.concatenate(list(group.values()), axis=1) for group in found])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("context", [150, 70, 10])
def test_losses_are_those_of_whole_passes(name, context, monkeypatch):
    """In pieces of a window, and of several windows at a time."""
    monkeypatch.setattr(losses, "PIECE", 64)
    model, tokens = build(name), some_tokens(151)
    found = pieced(model, tokens, context)
    assert found.shape == (150 // context, context)
    for window, row in enumerate(found):
        first = window * context
        wanted = whole_pass(model, tokens[first : first + context + 1])
        np.testing.assert_allclose(row, wanted, atol=1e-4)
    assert np.ptp(found) > 0.1


def test_special_tokens_stand_before_each_window():
    model, tokens = build("fm"), some_tokens(41)
    found = pieced(model, tokens, 20, before=[3, 4])
    for window, row in enumerate(found):
        part = tokens[20 * window : 20 * window + 21]
        wanted = whole_pass(model, np.concatenate([[3, 4], part]))[2:]
        np.testing.assert_allclose(row, wanted, atol=1e-4)


def test_means_are_those_of_the_training_example(checkpoint, monkeypatch):
    """`held_out_nats` of examples/pretrain.py, from which the model card's numbers come."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    pretrain = importlib.import_module("pretrain")
    model, _ = fm_mlx.load(checkpoint)
    tokens = some_tokens(1025)
    readings = measure_contexts(model, tokens, 2.0, [64, 256, 1024])
    for reading in readings:
        wanted = pretrain.held_out_nats(model, tokens, reading.context)
        assert reading.nats() == pytest.approx(wanted, abs=1e-4)
        assert reading.bits_per_byte() == pytest.approx(wanted / math.log(2) / 2, abs=1e-4)
    # what is predicted is the same, and a longer context changes it
    assert len({reading.context * reading.windows for reading in readings}) == 1
    assert readings[0].nats() != pytest.approx(readings[-1].nats(), abs=1e-4)


def test_peak_memory_does_not_grow_with_the_text():
    def peak(model: nn.Module, length: int) -> int:
        tokens = some_tokens(length + 1)
        gc.collect()
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()  # of other tests too
        for _ in losses_in_windows(model, tokens, length):
            pass
        return mx.get_peak_memory() - before

    fm, attention = build("fm"), build("llama")
    for model in (fm, attention):
        peak(model, 1024)  # compiles
    # when arrays are freed is a matter of threads, and varies by a fifth
    assert peak(fm, 40_960) <= 1.5 * peak(fm, 4096)
    assert peak(attention, 4096) > 1.5 * peak(attention, 1024)  # a cache that grows shows


def test_nan_is_said(loaded, changed, checkpoint):
    shape = mx.load(str(checkpoint / "model.safetensors"))["model.norm.weight"].shape
    folder = changed(weights={"model.norm.weight": mx.full(shape, float("nan"))})
    model, _ = fm_mlx.load(folder)
    with pytest.raises(NotFiniteError, match=r"within the first 20 tokens: .*model\.norm\.weight"):
        list(losses_in_windows(model, some_tokens(21), 20))


def test_tokens_are_those_of_the_text(loaded, tmp_path):
    _, tokenizer = loaded
    path, text = tmp_path / "text.txt", some_text(40_000).replace("\r", "")
    path.write_text(text, newline="")
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole = read_tokens(tokenizer, path, 10**9)
    assert whole.ids.tolist() == ids
    assert whole.bytes_per_token == pytest.approx(len(text.encode()) / len(ids))
    assert read_tokens(tokenizer, path, 1000).ids.tolist() == ids[:1000]


@pytest.mark.parametrize("context", [1, 2, 3, 256, 1000, 4096])
def test_buckets_cover_every_position_once(context):
    buckets = position_buckets(context)
    covered = [position for first, last in buckets for position in range(first, last + 1)]
    assert covered == list(range(1, context + 1))


def test_the_curve_takes_positions_from_the_shortest_windows():
    # 1 nat at every position of ten windows of 10, 2 nats in one of 100
    readings = [Reading(10, np.full(10, 10.0), 1.0), Reading(1, np.full(100, 2.0), 1.0)]
    parts = by_position(readings)
    assert [p for first, last, _ in parts for p in range(first, last + 1)] == list(range(1, 101))
    for first, _, loss in parts:
        assert loss * math.log(2) == pytest.approx(1.0 if first <= 10 else 2.0)


def test_contexts():
    assert contexts_that_fit(5000, None) == [256, 1024, 4096]
    assert contexts_that_fit(5000, [4096, 512, 512]) == [512, 4096]


@pytest.fixture
def two_models(checkpoint, tmp_path):
    """The checkpoint, and a llama with its tokenizer."""
    folder = tmp_path / "small-llama"
    folder.mkdir()
    config = CONFIGS["llama"]
    (folder / "config.json").write_text(json.dumps(config))
    weights = dict(tree_flatten(build("llama").parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((checkpoint / name).read_bytes())
    return [str(checkpoint), str(folder)]


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(some_text(4000))
    return path


def test_command(two_models, book, tmp_path, capsys):
    table, picture = tmp_path / "context.csv", tmp_path / "context.png"
    argv = ["eval", "context", "--model", *two_models, "--text", str(book)]
    argv += ["--contexts", "32", "128", "-m", "300", "--csv", str(table), "--plot", str(picture)]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "small-llama: 256 tokens of book.txt" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for path in two_models:
        name = Path(path).name
        for context in (32, 128):
            own = [r for r in rows if r["model"] == name and r["context"] == str(context)]
            total, *parts = own
            assert (total["first position"], total["last position"]) == ("1", str(context))
            assert total["tokens"] == "256"
            tokens = [int(part["tokens"]) for part in parts]
            assert sum(tokens) == 256
            nats = np.dot(tokens, [float(part["nats per token"]) for part in parts]) / 256
            assert nats == pytest.approx(float(total["nats per token"]), abs=1e-5)
            assert f"{float(total['nats per token']):.4f}" in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--text", "nowhere.txt"], "no nowhere.txt in"),
        (["--text", "EMPTY"], "has no text"),
        (["--text", "BYTES"], "is not UTF-8 text"),
        (["--text", "BOOK", "--contexts", "0"], "'0'; allowed are whole numbers from 1"),
        (["--text", "BOOK", "--contexts", "30", "128"], "does not divide the longest"),
        (["--text", "BOOK", "--contexts", "8192"], "is too long"),
        (["--text", "BOOK", "-m", "100"], "the shortest context is 256"),
        (["--text", "BOOK", "--plot", "x.exe"], "allowed endings of pictures are"),
        (["--text", "BOOK", "--csv", "nowhere/x.csv"], "there is no folder nowhere"),
        (["--text", "BOOK", "--model", "nowhere"], "no model"),
        ([], "--text"),
    ],
)
def test_bad_input(checkpoint, book, tmp_path, monkeypatch, capsys, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "bytes.txt").write_bytes(b"a\xff\xfe")
    files = {"BOOK": str(book), "EMPTY": "empty.txt", "BYTES": "bytes.txt"}
    before = set(tmp_path.iterdir())
    model = [] if "--model" in options else ["--model", str(checkpoint)]
    argv = ["eval", "context", *model, *[files.get(option, option) for option in options]]
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("task", [[], ["context"], ["needle"]])
def test_help_needs_no_mlx(task):
    code = (
        "import sys\nfrom fm_mlx.commands.cli import main\n"
        f"try: main(['eval', *{task}, '--help'])\n"
        "except SystemExit as done: assert done.code == 0\n"
        "assert not {'mlx', 'mlx_lm', 'transformers', 'matplotlib'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
