"""The comparisons of examples/paper: runs that resume, tables and figures of their results."""

from __future__ import annotations

import csv
import importlib
import math
import sys
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import fm_mlx

PAPER = Path(__file__).parents[1] / "examples" / "paper"


@pytest.fixture
def paper(monkeypatch):
    """Import a module of the folder as its scripts do, which stand side by side."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(PAPER.parent))
    monkeypatch.syspath_prepend(str(PAPER))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(PAPER.parent) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def test_runs_resume(paper, monkeypatch, tmp_path, capsys):
    runs = paper("runs")
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "results")
    first = {"arm": "fm", "rate": 6e-3, "changes": '{"m": 4}'}
    assert not runs.is_done("x", first) and runs.lines_of("x") == []
    runs.append("x", first | {"loss": 3.5})
    assert runs.is_done("x", first)
    assert not runs.is_done("x", first | {"rate": 3e-3})
    # a column more: the lines before have none of it
    runs.append("x", first | {"rate": 3e-3, "loss": 3.25, "rows used": "2.0"})
    with runs.path_of("x").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["loss"] for line in lines] == ["3.5", "3.25"]
    assert [line["rows used"] for line in lines] == ["", "2.0"]
    assert capsys.readouterr().out.count("\n") == 2


def test_no_run_is_planned_twice(paper, monkeypatch):
    sweep, recall = paper("sweep"), paper("recall")
    monkeypatch.setattr(sweep, "best_rate", lambda arm: 6e-3)
    for planned in (sweep.rates(), sweep.rows()):
        keys = [tuple(run.items()) for run in planned]
        assert len(keys) == len(set(keys))
    assert all(run["k"] <= run["m"] for run in recall.planned())


@pytest.mark.parametrize("name", ["rates", "rows", "recall", "generation", "packaged", "versions"])
def test_tables_and_figures_of_the_results(paper, name, monkeypatch, tmp_path):
    runs, tables, draw = paper("runs"), paper("tables"), paper("draw")
    if not runs.path_of(name).exists():
        pytest.skip(f"{runs.path_of(name).name} has not been measured")
    header, *body = tables.TABLES[name]()
    assert body and all(len(row) == len(header) for row in body)
    monkeypatch.setattr(draw, "IMAGES", tmp_path)
    if name in draw.FIGURES:
        draw.FIGURES[name]()
        assert [path.name for path in tmp_path.iterdir()] == [f"paper-{name}.png"]


def test_contexts_of_the_packaged_model_predict_the_same_tokens(paper, monkeypatch, tmp_path):
    runs, packaged = paper("runs"), paper("packaged")
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "results")
    text = tmp_path / "some.heldout.txt"
    text.write_text("In the beginning God created the heaven and the earth. " * 4)
    model, tokenizer = fm_mlx.load()
    measure = partial(packaged.measure, "x", "fm", model, tokenizer, text)
    measure((8, 32), 8)
    measure((8, 32), 32)
    lines = runs.lines_of("x")
    assert [(line["context"], line["tokens"]) for line in lines] == [("8", "32"), ("32", "32")]
    # whole windows alone, of whose tokens the first is given and not predicted
    tokens = tokenizer.encode(text.read_text(), add_special_tokens=False)
    ids = mx.array(tokens[:33])[None]
    loss = nn.losses.cross_entropy(model(ids[:, :-1]), ids[:, 1:], reduction="mean").item()
    assert float(lines[1]["nats per token"]) == pytest.approx(loss, abs=1e-4)
    bits = loss / math.log(2) * len(tokens) / text.stat().st_size
    assert float(lines[1]["bits per byte"]) == pytest.approx(bits, abs=1e-4)
    # what is there is not measured again, and a text shorter than a window is left out
    monkeypatch.setattr(packaged.context, "measure", lambda *args: pytest.fail("measured again"))
    measure((8, 32), 32)
    measure((4096,), 4096)


def test_balanced_loss_is_least_when_rows_are_used_alike(paper):
    sweep, balance, pretrain = paper("sweep"), paper("balance"), paper("pretrain")
    windows = mx.array(np.random.default_rng(0).integers(0, 2048, (2, 17)))

    def load(router: mx.array) -> float:
        """What balancing adds for a router of this weight in all layers."""
        model = sweep.built("fm", dict(num_memory_states=4, num_active_states=2), 0)
        for block in model.layers:
            block.memory.router.weight = router
        own = pretrain.loss_fn(model, windows).item()
        loss_fn = balance.balanced(model, 1.0, pretrain.loss_fn)
        return loss_fn(model, windows).item() - own

    random = mx.random.normal((6, 128), key=mx.random.key(0)) / 11
    one_row = mx.concatenate([8 * random[:1], 0 * random[1:]])
    assert 1 - 1e-4 < load(random) < load(one_row) + 1
    # the softmax of equal logits is 1 / m for each row, whatever ties give to the first two
    assert load(mx.zeros((6, 128))) == pytest.approx(1, abs=1e-4)


def test_balanced_model_computes_the_same(paper):
    sweep, balance, pretrain = paper("sweep"), paper("balance"), paper("pretrain")
    model = sweep.built("fm", dict(num_memory_states=4, num_active_states=2), 0)
    tokens = mx.arange(12)[None]
    before = model(tokens)
    balance.balanced(model, 0.01, pretrain.loss_fn)
    assert mx.array_equal(before, model(tokens))
