"""``fm-mlx inspect``: the numbers, the text of tokens, the page as text, and the command."""

from __future__ import annotations

import json
import math
import re

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny import CONFIG, some_text

import fm_mlx
from fm_mlx import loading, reference
from fm_mlx.commands import cli, inspect
from fm_mlx.inspection import observe as observing
from fm_mlx.inspection.lens import row_tokens
from fm_mlx.inspection.observe import observe, walk
from fm_mlx.inspection.page import html_page, layer_words, shown_half_life
from fm_mlx.inspection.tokens import TokenTexts, visible
from fm_mlx.text import encode_text

HOSTILE = (
    "the row <script>alert(1)</script> </script><!-- & \"x\" 'y' {{data}}\n\tof \u202e it \x07 \\"
)


@pytest.fixture(scope="module")
def tiny(checkpoint):
    return fm_mlx.load(checkpoint)


@pytest.fixture
def small_model(checkpoint, monkeypatch):
    """The model that is taken unless another is named."""
    monkeypatch.setattr(loading, "PRETRAINED", checkpoint)


def hand_made(num_active: int, update_logit: float = 0.0) -> fm_mlx.Model:
    """All rows get the same logits; eta is the sigmoid of a number, mu is 1/2."""
    args = fm_mlx.ModelArgs(
        hidden_size=4, num_hidden_layers=1, intermediate_size=4, vocab_size=8, memory_size=4,
        num_memory_states=4, num_active_states=num_active,
    )  # fmt: skip
    model = fm_mlx.Model(args)
    model.model.embed_tokens.weight = mx.ones((8, 4))  # what the router sees is ones
    router = mx.zeros((6, 4))
    router[4] = update_logit / 4
    model.layers[0].memory.router.weight = router
    return model


def page_of(tiny, text, **options):
    model, tokenizer = tiny
    seen = observe(model, [encode_text(tokenizer, text)], vocabulary=len(tokenizer), **options)
    return html_page(seen, TokenTexts(tokenizer), "a <b>model</b>")


def data_of(page):
    return json.loads(page.split('<script type="application/json" id="data">')[1].split("</")[0])


@pytest.mark.parametrize("rows", [8, 1024])
def test_the_walk_is_the_model(rows):
    """Bit for bit, from piece to piece, also where a large memory is kept in two buffers."""
    mx.random.seed(1)
    model = fm_mlx.Model(fm_mlx.ModelArgs.from_dict({**CONFIG, "num_memory_states": rows}))
    tokens = mx.random.randint(0, 512, (1, 40))
    watched, plain = model.make_cache(), model.make_cache()
    for piece in (tokens[:, :38], tokens[:, 38:39], tokens[:, 39:]):
        hidden, _ = walk(model, piece, watched)
        assert mx.array_equal(model.logits(hidden), model(piece, plain))


def test_affinities_and_rates_are_those_of_the_reference(tiny, monkeypatch):
    model, _ = tiny
    recorded, rates = [], []
    affinity, sigmoid = reference.affinity, reference.sigmoid

    def recording(logits, *options):
        recorded.append(affinity(logits, *options))
        return recorded[-1]

    def recording_rates(x):
        if x.shape[-1] == 1:
            rates.append(sigmoid(x)[:, 0])
        return sigmoid(x)

    monkeypatch.setattr(reference, "affinity", recording)
    monkeypatch.setattr(reference, "sigmoid", recording_rates)
    tokens = np.random.default_rng(0).integers(0, 512, 50)
    weights = {n: np.array(w, np.float64) for n, w in tree_flatten(model.parameters())}
    _, states = reference.language_model(tokens, weights, vars(model.args))
    seen = observe(model, [tokens.tolist()])
    assert len(recorded) == len(seen.layers) == 2
    for number, (use, alpha, state) in enumerate(zip(seen.layers, recorded, states, strict=True)):
        eta, mu = rates[2 * number : 2 * number + 2]
        np.testing.assert_allclose(use.affinity, alpha, atol=1e-5)
        np.testing.assert_allclose(use.update_rate, eta, atol=1e-5)
        np.testing.assert_allclose(use.merge_rate, mu, atol=1e-5)
        np.testing.assert_allclose(use.write_weight, eta[:, None] * alpha, atol=1e-5)
        np.testing.assert_allclose(use.merge_weight, mu[:, None] * alpha, atol=1e-5)
        np.testing.assert_allclose(use.usage, alpha.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(use.state, state, atol=1e-5)
        assert use.usage.sum() == pytest.approx(1, abs=1e-12)
        kept = np.prod(1 - eta[:, None] * alpha, axis=0)
        np.testing.assert_allclose(0.5 ** (50 / use.half_life), kept, rtol=1e-4)


def test_an_even_memory():
    """alpha = 1/4 and eta = 1/2: 7/8 of a row is left after a token."""
    use = observe(hand_made(num_active=4), [[1, 2, 3]]).layers[0]
    np.testing.assert_allclose(use.usage, 0.25)
    np.testing.assert_allclose(use.half_life, math.log(2) / -math.log(7 / 8), rtol=1e-6)
    assert use.rows_used == pytest.approx(4)
    assert use.rows_per_token == pytest.approx(4)
    assert (use.mean_update_rate, use.mean_merge_rate) == (0.5, 0.5)
    assert "hardly depends on the token" in layer_words(use, 3, 4)[-1]


def test_a_collapsed_memory():
    """Of equal rows the first is taken: with one active row it gets everything."""
    use = observe(hand_made(num_active=1), [[1, 2, 3, 4]]).layers[0]
    assert use.usage.tolist() == [1, 0, 0, 0]
    assert use.touched.tolist() == [4, 0, 0, 0]
    assert use.rows_used == use.rows_per_token == 1
    assert use.half_life.tolist() == [pytest.approx(1), math.inf, math.inf, math.inf]
    assert use.median_half_life == math.inf
    words = " ".join(layer_words(use, 4, 1))
    assert "halved never (the median of the rows), in the most used one, row 0, within 1 t" in words
    assert "uses 1.0 of its 4 rows effectively" in words
    assert "3 rows got none" in words
    assert "collapsed" in words


def test_a_row_that_is_replaced_keeps_nothing():
    use = observe(hand_made(num_active=1, update_logit=200.0), [[1, 2]]).layers[0]
    assert use.half_life[0] == 0
    assert shown_half_life(use.half_life[0]) == "0"
    assert shown_half_life(use.half_life[1]) == "∞"


def test_pieces_and_the_tokens_kept(tiny, monkeypatch):
    model, _ = tiny
    tokens = np.random.default_rng(1).integers(0, 512, 45).tolist()
    whole = observe(model, [tokens])
    monkeypatch.setattr(observing, "_PIECE", 7)
    read = []
    pieces = observe(
        model, [tokens[:20], tokens[20:]], keep=10, progress=lambda n, _: read.append(n)
    )
    assert read == [7, 14, 20, 27, 34, 41, 45]
    assert (pieces.tokens, pieces.kept, pieces.first_kept) == (45, tokens[-10:], 36)
    for one, other in zip(pieces.layers, whole.layers, strict=True):
        np.testing.assert_allclose(one.affinity, other.affinity[-10:], atol=1e-5)
        np.testing.assert_allclose(one.merge_rate, other.merge_rate[-10:], atol=1e-5)
        np.testing.assert_allclose(one.usage, other.usage, atol=1e-5)
        np.testing.assert_allclose(one.decay, other.decay, atol=1e-5)
        assert one.rows_per_token == pytest.approx(other.rows_per_token, rel=1e-4)


def test_nothing_to_read_and_numbers_that_are_none(tiny):
    with pytest.raises(ValueError, match="no tokens"):
        observe(tiny[0], [])
    broken = hand_made(num_active=2)
    broken.layers[0].memory.in_proj.weight = mx.full((4, 4), math.nan)
    with pytest.raises(ArithmeticError, match="first 2: the state of layer 0"):
        observe(broken, [[1, 2]])


def test_the_lens_is_the_norm_and_the_head_of_the_read(tiny):
    model, _ = tiny
    memory = model.layers[1].memory
    state = mx.random.normal((8, 64))
    state[3] = 0
    tokens = row_tokens(model, memory, state, 4, vocabulary=300)
    h = np.array(state, np.float64)
    weights = {n: np.array(w, np.float64) for n, w in tree_flatten(model.parameters())}
    read = h / reference.rms(h, memory.eps) @ weights["model.layers.1.memory.out_proj.weight"].T
    normed = read / reference.rms(read, model.args.rms_norm_eps) * weights["model.norm.weight"]
    logits = (normed @ weights["lm_head.weight"].T)[:, :300]
    others = [0, 1, 2, 4, 5, 6, 7]
    assert np.array_equal(tokens.ids[others], np.argsort(-logits, axis=1)[others, :4])
    above = (logits.max(axis=1) - logits.mean(axis=1))[others] / logits.std(axis=1)[others]
    np.testing.assert_allclose(tokens.strength[others, 0], above, rtol=1e-4)
    assert not tokens.strength[3].any()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" the", " the"),
        ("\n\t", "⏎⇥"),
        ("\x07\x7f", "␇␡"),
        ("\u202e\u200b", "<U+202E><U+200B>"),
        ("\u2028\u00a0", "<U+2028><U+00A0>"),
        ("naïve 東京 🙂", "naïve 東京 🙂"),
    ],
)
def test_what_cannot_be_seen_gets_a_sign(text, shown):
    assert visible(text) == shown


def test_the_texts_of_tokens_make_the_prompt(tiny):
    _, tokenizer = tiny
    text = "the river (see) 3.14 row;\nlong text"
    shown = "".join(TokenTexts(tokenizer)(encode_text(tokenizer, text, False)))
    assert shown.replace("⏎", "\n") == text
    parts = TokenTexts(tokenizer)(encode_text(tokenizer, "☃", False))
    assert parts == ["<0xE2>", "<0x98>", "<0x83>"]  # a character of three bytes, none in the text


def test_the_page_needs_nothing_beside_it(tiny):
    page = page_of(tiny, some_text(600))
    assert "://" not in page
    assert not re.search(r"\bsrc\s*=|url\(|@import|<link|<img|<iframe|\bfetch\(|import\(", page)
    assert set(re.findall(r'href="([^"]*)"', page)) == {"#overview", "#layer-0", "#layer-1"}
    assert "default-src 'none'" in page
    assert "{{" not in page.split("<body>")[0]


def test_a_prompt_is_text_and_nothing_else(tiny):
    page = page_of(tiny, HOSTILE)
    assert page.count("<script") == page.count("</script>") == 2  # the data, and ours
    assert "<!--" not in page.split("<body>")[1]
    assert "a &lt;b&gt;model&lt;/b&gt;" in page
    data = data_of(page)
    assert "<script>alert(1)</script> </script><!--" in "".join(data["tokens"])
    assert not {"\u202e", "\x07", "\t"} & set(page)
    prompt = page.split('<p class="prompt">')[1].split("</p>")[0]
    assert prompt.count("<span>") == prompt.count("</span>") == len(data["tokens"])
    assert re.sub("</?span>", "", prompt).count("<") == 0


def test_a_token_cannot_end_the_script(tiny):
    """Some vocabularies have tokens like this one."""
    model, _ = tiny
    token = "</script><script>alert(1)</script>&amp;"
    page = html_page(observe(model, [[5, 6]]), lambda ids: [token for _ in ids], "x")
    assert page.count("<script") == page.count("</script>") == 2
    assert data_of(page)["tokens"] == [token, token]


def test_what_the_script_draws(tiny):
    import base64

    model, tokenizer = tiny
    seen = observe(model, [encode_text(tokenizer, some_text(300))], keep=30)
    data = data_of(html_page(seen, TokenTexts(tokenizer), "x"))
    assert (data["first"], len(data["tokens"])) == (seen.first_kept, 30)
    for layer, use in zip(data["layers"], seen.layers, strict=True):
        steps = np.frombuffer(base64.b64decode(layer["alpha"]), "<u2").reshape(30, 8)
        np.testing.assert_allclose(steps / 65535, use.affinity, atol=1e-5)
        assert np.array_equal(steps > 0, use.affinity > 0)
        np.testing.assert_allclose(layer["eta"], use.update_rate, atol=1e-5)
        np.testing.assert_allclose(layer["usage"], use.usage, atol=1e-5)


def test_of_a_large_memory_the_rows_used_most_are_shown(monkeypatch, tiny):
    from fm_mlx.inspection import page

    monkeypatch.setattr(page, "MAX_ROWS", 3)
    model, tokenizer = tiny
    seen = observe(model, [encode_text(tokenizer, some_text(300))])
    text = html_page(seen, TokenTexts(tokenizer), "x")
    for layer, use in zip(data_of(text)["layers"], seen.layers, strict=True):
        assert layer["rows"] == sorted(np.argsort(-use.usage)[:3])
    assert text.count("The 3 rows used most are shown, of 8.") == 2


def test_the_command(small_model, tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    assert cli.main(["inspect", "-p", "the long river\\nof stone", "-o", str(out)]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["affinities.png", "index.html", "rows.png"]
    assert (out / "index.html").read_text().endswith("</html>")
    for name in ("affinities", "rows"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "rows used of 8" in printed
    assert str(out / "index.html") in printed
    assert cli.main(["inspect", "-p", "other", "-o", str(out)]) == 0  # replaces them


def test_a_long_file(small_model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(some_text(9000))
    argv = ["inspect", "--prompt-file", str(text), "-o", str(tmp_path / "o")]
    assert cli.main([*argv, "--max-tokens-shown", "50"]) == 0
    page = (tmp_path / "o" / "index.html").read_text()
    assert len(data_of(page)["tokens"]) == 50
    assert "the last 50 are shown" in page


def test_without_matplotlib_there_is_the_page(small_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(inspect, "find_spec", lambda _: None)
    assert cli.main(["inspect", "-p", "river", "-o", str(tmp_path / "o")]) == 0
    assert [p.name for p in (tmp_path / "o").iterdir()] == ["index.html"]
    assert "fm-mlx[plot]" in capsys.readouterr().err


def test_a_picture_that_fails_leaves_no_half_of_it(small_model, tmp_path, monkeypatch, capsys):
    from matplotlib.figure import Figure

    def failing(self, path, **_):
        path.write_bytes(b"\x89PNG")
        raise OSError("no space left on device")

    monkeypatch.setattr(Figure, "savefig", failing)
    assert cli.main(["inspect", "-p", "river", "-o", str(tmp_path / "o")]) == 2
    assert [p.name for p in (tmp_path / "o").iterdir()] == ["index.html"]
    assert "no space left" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "one of the arguments --prompt/-p --prompt-file is required"),
        (["-p", ""], "the prompt is empty"),
        (["-p", "x", "--prompt-file", "y"], "not allowed with argument"),
        (["--prompt-file", "nowhere.txt"], "no such file"),
        (["--prompt-file", "latin.txt"], "not UTF-8 text"),
        (["-p", "x", "--model", "nowhere"], "nowhere"),
        (["-p", "x", "-o", "latin.txt"], "is a file; allowed is a folder"),
        (["-p", "x", "--max-tokens-shown", "0"], "allowed are whole numbers from 1"),
        (["-p", "x", "--max-tokens-shown", "5000"], "allowed are 1 to 4096"),
    ],
)
def test_bad_input(small_model, tmp_path, monkeypatch, capsys, argv, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.txt").write_bytes(b"na\xefve")
    assert cli.main(["inspect", *argv]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err
    assert [p.name for p in tmp_path.iterdir()] == ["latin.txt"]
