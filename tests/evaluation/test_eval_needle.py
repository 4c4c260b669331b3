"""``fm-mlx eval needle``: a model of known memory has the known map; seeds decide all else."""

from __future__ import annotations

import csv
import sys

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import ArraysCache
from small_models import build
from tiny import some_text

import fm_mlx
from fm_mlx import loading
from fm_mlx.commands import cli
from fm_mlx.evaluation import needle
from fm_mlx.evaluation.hay import Hay
from fm_mlx.evaluation.needle import Answer, Cell, answers
from fm_mlx.evaluation.needle import measure as measure_needles
from fm_mlx.evaluation.texts import encode_inside
from fm_mlx.evaluation.wording import CANDIDATES, KINDS, draw_fact


@pytest.fixture(autouse=True)
def small_model(reader, monkeypatch):
    """The model that is taken unless another is named reads fast."""
    monkeypatch.setattr(loading, "PRETRAINED", reader)


@pytest.fixture(scope="module")
def tokenizer(reader):
    return fm_mlx.load(reader)[1]


class Copier:
    """Says what followed the last four tokens where they last stood, within a window of the text.

    It remembers the window and nothing else; of what it does not remember it knows nothing.
    """

    def __init__(self, window: int, vocab_size: int):
        self.layers = [None]
        self._window, self._vocab_size = window, vocab_size

    def make_cache(self) -> list[ArraysCache]:
        return [ArraysCache(size=1)]

    def __call__(self, inputs: mx.array, cache: list[ArraysCache]) -> mx.array:
        before = [] if cache[0][0] is None else cache[0][0][0].tolist()
        text = before + inputs[0].tolist()
        cache[0][0] = mx.array([text[-self._window :]])
        logits = np.zeros((1, inputs.shape[1], self._vocab_size), np.float32)
        for place in range(inputs.shape[1]):
            seen = text[: len(before) + place + 1][-self._window :]
            for start in range(len(seen) - 5, -1, -1):
                if seen[start : start + 4] == seen[-4:]:
                    logits[0, place, seen[start + 4]] = 20
                    break
        return mx.array(logits)


def test_a_model_of_known_memory_has_the_known_map(tokenizer):
    """Within its window it knows the value, beyond it each value is as likely as any other."""
    copier = Copier(window=150, vocab_size=2048)
    cells = measure_needles(copier, tokenizer, Hay(tokenizer), [100, 400], depths=5, samples=2)
    assert len(cells) == 2 * 6
    for cell in cells:
        distance = None if cell.depth is None else cell.length * (1 - cell.depth)
        if distance is not None and distance <= 100:
            assert (cell.exact, cell.first) == (1.0, 1.0)
            # five or six tokens, each from one of 2,048 to nearly certain
            assert cell.gain > 5 * np.log(2048) - 1
            assert cell.gain_on_others == pytest.approx(np.log(CANDIDATES), abs=1e-3)
            assert [answer.rank for answer in cell.answers] == [1, 1]
        else:
            assert cell.exact == 0
            assert cell.first == pytest.approx(1 / CANDIDATES)
            assert cell.gain == cell.gain_on_others == 0
            assert [answer.rank for answer in cell.answers] == [(CANDIDATES + 1) / 2] * 2
    assert {cell.first == 1 for cell in cells} == {True, False}


@pytest.mark.parametrize("name", ["fm", "wide fm", "llama", "mamba2"])
def test_shared_beginnings_change_nothing(name, tokenizer):
    """Each answer is that of reading hay, needle and question in one pass."""
    model, vocab = build(name), 512
    rng = np.random.default_rng(1)
    fact = draw_fact(rng, tokenizer, "number")
    fact = type(fact)(
        [t % vocab for t in fact.question],
        [[t % vocab for t in value] for value in fact.values[:3]],
        [t % vocab for t in fact.end],
    )
    hay = rng.integers(0, vocab, 90)
    places = [0, 40, 41, 90]
    found = list(answers(model, fact, hay, places, before=[7]))
    assert len(found) == len(places) + 1
    for place, answer in zip([*places, None], found, strict=True):
        read = [*hay] if place is None else [*hay[:place], *fact.sentence, *hay[place:]]
        for value, log_prob in zip(fact.values, answer.log_probs, strict=True):
            text = [int(token) for token in [7, *read, *fact.question, *value]]
            logits = model(mx.array([text[:-1]]))[0, -len(value) :]
            wanted = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            wanted = sum(wanted[i, token].item() for i, token in enumerate(value))
            assert log_prob == pytest.approx(wanted, abs=1e-4)
    assert np.ptp([answer.log_probs[0] for answer in found]) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_facts(tokenizer, kind):
    fact, again, other = (
        draw_fact(np.random.default_rng(seed), tokenizer, kind) for seed in (3, 3, 4)
    )
    assert fact == again != other
    assert len({tuple(value) for value in fact.values}) == CANDIDATES
    assert len({len(value) for value in fact.values}) == 1
    assert f" The secret {kind} of " in tokenizer.decode(fact.sentence)
    assert tokenizer.decode(fact.sentence).endswith(".")


def test_equal_values_share_their_places():
    answer = Answer(False, np.array([-1.0, -1.0, -3.0, -0.5]))
    assert (answer.rank, answer.first) == (2.5, 0)
    assert Answer(False, np.array([-1.0, -1.0, -3.0])).first == 0.5


def test_what_makes_all_values_likelier_is_no_gain_on_others():
    before = Answer(False, np.array([-9.0, -8.0, -7.0]))
    cell = Cell(10, 0.5, [Answer(False, before.log_probs + 4)], [before])
    assert (cell.gain, cell.gain_on_others) == (4, pytest.approx(0))


def test_hay_is_cut_between_sentences(tokenizer):
    text = "The river is long. The stone writes! Is it so? A line\nends here. And more"
    tokens = np.array(encode_inside(tokenizer, text))
    hay, ends = Hay(tokenizer, tokens).draw(np.random.default_rng(0), len(tokens))
    assert (ends.at(0), ends.at(1)) == (0, len(tokens))
    starts = {tokenizer.decode(hay[: ends.at(depth)].tolist()) for depth in np.linspace(0, 1, 99)}
    cuts = ("The river is long.", "The stone writes!", "Is it so?", "A line\n", "ends here.")
    wanted = {text[: text.index(cut) + len(cut)] for cut in cuts}
    assert starts == {"", text, *wanted}


def run(tmp_path, *options: str) -> list[dict[str, str]]:
    table = tmp_path / "needle.csv"
    argv = ["eval", "needle", "--lengths", "40", "90", "--depths", "3", "--samples", "2"]
    assert cli.main([*argv, "--csv", str(table), *options]) == 0
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(some_text(3000))
    return path


def test_command(tmp_path, book, capsys):
    picture = tmp_path / "needle.png"
    rows = run(tmp_path, "--text", str(book), "--plot", str(picture))
    out = capsys.readouterr().out
    assert [(row["length"], row["depth"]) for row in rows] == [
        (length, depth) for length in ("40", "90") for depth in ("0", "0.5", "1", "none")
    ]
    for row in rows:
        assert (row["model"], row["samples"], row["candidates"]) == ("packaged", "2", "16")
        assert 1 <= float(row["mean rank"]) <= 16
        if row["depth"] == "none":
            assert float(row["nats gained"]) == float(row["standard error"]) == 0
    # the needle is seen, and told apart by place
    assert len({row["nats gained"] for row in rows}) == 7
    assert "no needle" in out and "right value first of 16 (by chance 6%)" in out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_seeds(tmp_path, book):
    first, again, other = (
        run(tmp_path, "--text", str(book), "--values", "word", "--seed", seed) for seed in "112"
    )
    assert first == again != other


def test_lengths_do_not_change_each_other(tmp_path):
    both = run(tmp_path)
    assert run(tmp_path, "--lengths", "90") == [row for row in both if row["length"] == "90"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--text", "nowhere.txt"], "no nowhere.txt in"),
        (["--text", "BOOK", "--lengths", "100000"], "is too long: the text has"),
        (["--depths", "1"], "'1'; allowed are whole numbers from 2"),
        (["--samples", "0"], "'0'; allowed are whole numbers from 1"),
        (["--values", "verse"], "invalid choice: 'verse'"),
        (["--plot", "x"], "allowed endings of pictures are"),
        (["--model", "nowhere"], "no model"),
    ],
)
def test_bad_input(book, tmp_path, monkeypatch, capsys, options, said):
    monkeypatch.chdir(tmp_path)
    argv = ["eval", "needle", *[str(book) if option == "BOOK" else option for option in options]]
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_a_picture_needs_matplotlib(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(needle, "measure", None)  # said before anything is measured
    assert cli.main(["eval", "needle", "--plot", str(tmp_path / "x.png")]) == 2
    assert "pip install 'fm-mlx[plot]'" in capsys.readouterr().err
