"""The model in the package."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn
import pytest

import fm_mlx
from fm_mlx.commands.cli import main
from fm_mlx.loading import PRETRAINED

# John 11:25: text of the kind it was trained on.
VERSE = (
    "Jesus said unto her, I am the resurrection, and the life: he that believeth in me, "
    "though he were dead, yet shall he live:\n"
)


@pytest.fixture(scope="module")
def packaged():
    return fm_mlx.load()


def nats_per_token(model, tokens: list[int]) -> float:
    ids = mx.array(tokens)[None]
    return nn.losses.cross_entropy(model(ids[:, :-1]), ids[:, 1:], reduction="mean").item()


def test_fits_in_six_megabytes():
    assert sum(file.stat().st_size for file in PRETRAINED.iterdir()) <= 6e6


def test_has_learned_its_text(packaged):
    model, tokenizer = packaged
    tokens = tokenizer.encode(VERSE)
    assert nats_per_token(model, tokens) < 4 < math.log(model.args.vocab_size)
    # the order of the words matters to it
    assert nats_per_token(model, tokens) < nats_per_token(model, tokens[::-1]) - 1


@pytest.mark.parametrize("text", [VERSE, "  two  spaces\n\n\ttab ", "naïve 東京 🙂"])
def test_tokenizer_gives_back_the_text(packaged, text):
    _, tokenizer = packaged
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_command_needs_no_model(capsys):
    assert main(["generate", "--prompt", "In the beginning", "--max-tokens", "30"]) == 0
    out = capsys.readouterr().out
    assert "Generation: 30 tokens" in out
    assert len(out.split("==========")[1].split()) > 10  # it writes words
