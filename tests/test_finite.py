"""A model that computes NaN stops in one line that names the layer; it never writes text."""

from __future__ import annotations

import re
import sys
import types

import mlx.core as mx
import mlx_lm
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.perplexity import eval_ppl

import fm_mlx
from fm_mlx.commands import cli
from fm_mlx.finite import NotFiniteError, is_finite
from fm_mlx.registry import watched

NAN, INF = float("nan"), float("inf")

# A weight, its value, and what is said to be the first fault.
FAULTS = [
    ("model.embed_tokens.weight", NAN, "the state of layer 0 is not"),
    ("model.layers.0.memory.in_proj.weight", INF, "the state of layer 0 is not"),
    ("model.layers.1.memory.router.weight", NAN, "the state of layer 1 is not"),
    ("model.layers.0.memory.out_proj.weight", NAN, "the state of layer 1 is not"),
    ("model.layers.1.memory.out_proj.weight", NAN, "the output of layer 1 is not"),
    ("model.layers.1.mlp.down_proj.weight", -INF, "the output of layer 1 is not"),
    ("model.norm.weight", NAN, "neither are those of the last norm or the head"),
    ("lm_head.weight", INF, "neither are those of the last norm or the head"),
]


@pytest.fixture
def folder_with(checkpoint, changed):
    """The checkpoint with one weight full of a value."""

    def make(name: str, value: float):
        shape = mx.load(str(checkpoint / "model.safetensors"))[name].shape
        return changed(weights={name: mx.full(shape, value)})

    return make


@pytest.mark.parametrize(("name", "value", "fault"), FAULTS)
def test_generate_names_the_layer(folder_with, capsys, name, value, fault):
    folder = folder_with(name, value)
    assert cli.main(["generate", "--model", str(folder), "-p", "the river"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"fm-mlx: error: [^\n]+\n", err)
    assert "generation stopped before token 1: the logits are not finite" in err
    assert fault in err
    assert f"({name} has NaN or infinite numbers)" in err


def test_a_long_prompt_stops_where_the_state_is_lost(folder_with):
    """Not at its end, which may be an hour away."""
    model, tokenizer = fm_mlx.load(folder_with("model.layers.1.memory.in_proj.weight", NAN))
    asked = []

    def pieces():
        for number in range(1000):
            asked.append(number)
            yield "the river " * 500

    with pytest.raises(NotFiniteError, match=r"the state of layer 1 is not .*in_proj\.weight"):
        next(fm_mlx.stream_generate(model, tokenizer, pieces(), prefill_step_size=64))
    assert len(asked) < 20


def test_a_state_that_is_not_finite_is_found_while_generating(loaded):
    """As a saved state of another model may bring it."""
    model, tokenizer = loaded
    cache = make_prompt_cache(model)
    for _ in fm_mlx.stream_generate(model, tokenizer, "the river", 3, prompt_cache=cache):
        pass
    cache[1][0] = cache[1][0] * NAN
    with pytest.raises(NotFiniteError, match="the state of layer 1 is not"):
        next(fm_mlx.stream_generate(model, tokenizer, " stone", 3, prompt_cache=cache))


def test_logits_of_minus_infinity_are_no_fault(loaded):
    """A logits processor may rule tokens out."""

    def only(token):
        def rule(_, logits):
            allowed = mx.arange(logits.shape[-1]) == token
            return mx.where(allowed, logits, -INF)

        return rule

    found = list(fm_mlx.stream_generate(*loaded, "the river", 3, logits_processors=[only(7)]))
    assert [response.token for response in found] == [7, 7, 7]


def test_a_model_of_another_architecture_is_not_searched(loaded):
    """`stream_generate` takes mlx-lm's other models too."""
    from mlx_lm.models import llama

    args = llama.ModelArgs(
        model_type="llama", hidden_size=32, num_hidden_layers=1, intermediate_size=32,
        num_attention_heads=2, rms_norm_eps=1e-6, vocab_size=512,
    )  # fmt: skip
    model = llama.Model(args)
    assert len(list(fm_mlx.stream_generate(model, loaded[1], "the river", 3))) == 3
    model.model.norm.weight = model.model.norm.weight * NAN
    with pytest.raises(NotFiniteError, match="another architecture"):
        list(fm_mlx.stream_generate(model, loaded[1], "the river", 3))


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.down_proj.weight"])
def test_programs_of_mlx_lm_stop_as_well(folder_with, name):
    """`perplexity` and what else `fm-mlx` hands over to mlx-lm."""
    folder = folder_with(name, NAN)
    with watched():
        model, _ = mlx_lm.load(str(folder))
    tokens = mx.random.randint(0, 500, (2, 9))
    with pytest.raises(NotFiniteError, match=f"the logits are not finite.*{name}"):
        eval_ppl(model, tokens)
    whole, _ = fm_mlx.load(folder)
    assert type(whole) is fm_mlx.Model


def test_perplexity_command(folder_with, monkeypatch, capsys):
    folder = folder_with("model.layers.0.memory.in_proj.weight", NAN)
    data = types.SimpleNamespace(load_data=lambda *_, **__: mx.random.randint(0, 500, (2, 9)))
    monkeypatch.setattr("mlx_lm.perplexity.load_data", data.load_data)
    argv = ["perplexity", "--model", str(folder), "--data-path", "x"]
    assert cli.main(argv) == 1
    assert "the output of layer 0 is not" in capsys.readouterr().err
    assert sys.argv[0] != "fm-mlx perplexity"


def test_a_tiny_temperature_is_refused(changed, capsys):
    """Logits over 1e-308 are infinite; two of them make NaN."""
    folder = changed(config={"affinity_temperature": 1e-308})
    assert cli.main(["generate", "--model", str(folder), "-p", "x"]) == 2
    assert "affinity_temperature is 1e-308; allowed are numbers from 1e-06" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("at", [0, 1 << 20, (1 << 20) + 5])
def test_is_finite_looks_everywhere(at):
    x = mx.zeros((2, (1 << 19) + 8))
    assert is_finite(x)
    for value in (NAN, INF):
        assert not is_finite(mx.where(mx.arange(x.size).reshape(x.shape) == at, value, x))
    assert is_finite(mx.arange(5))
