"""MQAR: its sequences, its training, and what counts as recalled."""

from __future__ import annotations

import csv

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from fm_mlx.commands import cli, eval_recall
from fm_mlx.evaluation import arms, recall
from fm_mlx.evaluation.recall import Setting, Training

VOCAB = 32


def drawn(setting: Setting, count: int = 8, seed: int = 0):
    return recall.sequences(setting, count, VOCAB, np.random.default_rng(seed))


@pytest.mark.parametrize(
    "setting", [Setting(16, 4), Setting(64, 4), Setting(60, 15), Setting(7, 1)]
)
def test_sequences_ask_for_every_pair_once(setting):
    tokens, targets = drawn(setting)
    assert tokens.shape == targets.shape == (8, setting.length)
    assert tokens.min() >= 1 and tokens.max() < VOCAB
    for row, wanted in zip(tokens, targets, strict=True):
        listed = row[: 2 * setting.pairs]
        keys, values = listed[::2], listed[1::2]
        assert (keys < VOCAB // 2).all() and (values >= VOCAB // 2).all()
        assert len(set(keys)) == len(set(values)) == setting.pairs
        asked = np.flatnonzero(wanted >= 0)
        assert (asked >= 2 * setting.pairs).all()
        assert sorted(row[asked]) == sorted(keys)
        pairs = dict(zip(keys, values, strict=True))
        assert [pairs[key] for key in row[asked]] == wanted[asked].tolist()
        assert (row[asked + 1] == wanted[asked]).all()


def test_queries_are_nearer_the_pairs_more_often():
    """The power law of the gaps: half of the places hold well over half of the queries."""
    _, targets = recall.sequences(Setting(256, 4), 400, VOCAB, np.random.default_rng(1))
    places = np.flatnonzero(targets >= 0) % 256
    assert (places < (8 + 256) / 2).mean() > 0.7


def test_sequences_depend_on_the_generator_alone():
    assert (drawn(Setting(16, 4))[0] == drawn(Setting(16, 4))[0]).all()
    assert (drawn(Setting(16, 4))[0] != drawn(Setting(16, 4), seed=1)[0]).any()


class LooksBack(nn.Module):
    """An oracle: after a token it expects what followed the same token before."""

    def __call__(self, tokens: mx.array) -> mx.array:
        batch = np.array(tokens)
        logits = np.zeros((*batch.shape, VOCAB), np.float32)
        for row, sequence in zip(logits, batch, strict=True):
            for t, token in enumerate(sequence):
                before = np.flatnonzero(sequence[:t] == token)
                if len(before):
                    row[t, sequence[before[0] + 1]] = 1
        return mx.array(logits)


class Constant(nn.Module):
    def __call__(self, tokens: mx.array) -> mx.array:
        return mx.zeros((*tokens.shape, VOCAB))


def test_accuracy_counts_the_queries():
    # no random token stands between pairs and queries that could mislead the oracle
    assert recall.accuracy(LooksBack(), Setting(60, 15), VOCAB, 4) == 1
    assert recall.accuracy(Constant(), Setting(60, 15), VOCAB, 4) == 0


def test_loss_is_that_of_the_queries():
    tokens, targets = (mx.array(x) for x in drawn(Setting(64, 4)))
    loss = recall.recall_loss(Constant(), tokens, targets)
    assert loss.item() == pytest.approx(np.log(VOCAB), rel=1e-5)


def test_active_rows_fall_from_all_to_the_models_own():
    training = Training([Setting(16, 4)], steps=100, vocab_size=VOCAB, dense_share=0.3)
    active = [recall.active_rows(step, training, 64, 2) for step in range(100)]
    assert active[:30] == [64] * 30 and active[60:] == [2] * 40
    assert sorted(active, reverse=True) == active
    assert set(active) == {64, 32, 16, 8, 4, 2}
    papers = Training([Setting(16, 4)], steps=100, vocab_size=VOCAB)
    assert {recall.active_rows(step, papers, 64, 2) for step in range(100)} == {2}


def test_a_model_learns_and_keeps_its_active_rows():
    model = arms.build("fm_convolved", 16, 32, 1, 0, num_memory_states=8, num_active_states=2)
    training = Training([Setting(8, 2)], 150, 512, 1e-2, vocab_size=16, dense_share=0.3)
    losses = [loss for _, loss in recall.train(model, training)]
    assert model.layers[0].memory.num_active_states == 2
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    again = arms.build("fm_convolved", 16, 32, 1, 0, num_memory_states=8, num_active_states=2)
    first = next(iter(recall.train(again, training)))
    assert first == (0, losses[0])


@pytest.mark.parametrize("arm", arms.ARMS)
def test_every_arm_learns_more_than_that_a_value_answers_a_key(arm):
    """A comparison with an arm that cannot learn would say nothing."""
    model = arms.build(arm, 16, 32, 1, 0)
    training = Training([Setting(8, 2)], 80, 256, 1e-2, vocab_size=16)
    losses = [loss for _, loss in recall.train(model, training)]
    assert np.mean(losses[-10:]) < 0.85 * np.log(8)


def test_product_keys_need_a_square(capsys):
    command = ["eval", "recall", "--arm", "fm_product", "--num-memory-states", "32"]
    assert cli.main([*command, "--steps", "1"]) == 2
    assert (
        "num_memory_states is 32; with router 'product' allowed are the squares"
        in capsys.readouterr().err
    )


def test_scaled_routers_are_sharper_and_all_else_is_as_it_was():
    plain, scaled = (arms.build("fm", VOCAB, 64, 2, 0, router_scale=scale) for scale in (1, 4))
    of_plain, of_scaled = (dict(tree_flatten(m.parameters())) for m in (plain, scaled))
    routers = [name for name in of_plain if name.endswith("router.weight")]
    assert len(routers) == 2
    for name in routers:
        before, after = of_plain.pop(name), of_scaled.pop(name)
        assert mx.array_equal(after[:-2], 4 * before[:-2])
        assert mx.array_equal(after[-2:], before[-2:])
    assert all(mx.array_equal(of_scaled[name], weight) for name, weight in of_plain.items())


@pytest.mark.parametrize("arm", ["mamba2", "gated_delta"])
def test_arms_begin_with_the_time_steps_of_their_papers(arm):
    model = arms.build(arm, 16, 32, 2, 0)
    layers = [module for module in model.modules() if "dt_bias" in module]
    assert len(layers) == {"mamba2": 4, "gated_delta": 2}[arm]
    steps = np.array([nn.softplus(layer.dt_bias) for layer in layers])
    decays = np.exp(np.array([layer.A_log for layer in layers]))
    assert 1e-3 <= steps.min() < steps.max() <= 1e-1
    assert 1 <= decays.min() < decays.max() <= 16


@pytest.mark.parametrize("arm", arms.ARMS)
def test_arms_are_causal_models(arm):
    model = arms.build(arm, VOCAB, 64, 2, 0)
    tokens, _ = drawn(Setting(16, 4), 1)
    other = tokens.copy()
    other[:, 9] = other[:, 9] % (VOCAB - 1) + 1
    before, after = model(mx.array(tokens)), model(mx.array(other))
    assert before.shape == (1, 16, VOCAB)
    same = mx.abs(before - after).max(axis=-1)[0]
    assert same[:9].max().item() < 1e-5 < same[9].item()


def test_the_commands_arms_are_all_arms():
    assert set(eval_recall.ARMS) == set(arms.ARMS)


def test_command_trains_and_reports(tmp_path, capsys):
    table, picture = tmp_path / "recall.csv", tmp_path / "recall.png"
    argv = [
        "eval",
        "recall",
        "--arm",
        "fm",
        "gated_delta",
        "--train",
        "8:2",
        "--test",
        "8:2",
        "16:4",
    ]
    argv += ["--hidden-size", "32", "--num-layers", "1", "--num-memory-states", "8"]
    argv += ["--router-scale", "3"]
    argv += ["--steps", "2", "--tokens-per-step", "64", "--vocab-size", "32"]
    assert cli.main([*argv, "--csv", str(table), "--plot", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "8:2" in printed and "gated_delta" in printed
    rows = list(csv.DictReader(table.open()))
    assert [(row["arm"], row["pairs"]) for row in rows] == [
        ("fm", "2"), ("fm", "4"), ("gated_delta", "2"), ("gated_delta", "4"),
    ]  # fmt: skip
    assert all(0 <= float(row["accuracy"]) <= 1 for row in rows)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--train", "8"], "tokens:pairs"),
        (["--train", "8:4"], "4 pairs do not fit 8 tokens"),
        (["--test", "1024:200"], "a vocabulary of 256 has 127"),
        (["--num-active-states", "65"], "allowed are 1 to 64"),
        (["--dense-share", "0.7"], "from 0 to 0.5"),
        (["--arm", "rwkv"], "rwkv"),
        (["--csv", "nowhere/x.csv"], "nowhere"),
    ],
)
def test_bad_options_end_in_one_line(options, said, capsys):
    assert cli.main(["eval", "recall", "--steps", "1", *options]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
