"""Drafts on the command line, and what is refused."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest
from drafted import LLAMA, VOCAB, llama_model
from mlx.utils import tree_flatten
from mlx_lm.models import mamba

from fm_mlx.commands import cli


def recurrent_model_of_mlx_lm():
    args = mamba.ModelArgs(
        model_type="mamba", vocab_size=VOCAB, hidden_size=32, intermediate_size=32,
        state_size=4, num_hidden_layers=1, conv_kernel=4, use_bias=False, use_conv_bias=True,
        time_step_rank=4,
    )  # fmt: skip
    return mamba.Model(args)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (lambda: {"draft_model": llama_model(vocab_size=99)}, "has 99 tokens; the model has 512"),
        (
            lambda: {"draft_model": recurrent_model_of_mlx_lm()},
            r"cache cannot be trimmed \(ArraysCache\)",
        ),
        (
            lambda: {"draft_model": llama_model(), "prompt_lookup": True},
            "a draft_model and prompt_lookup; allowed is one",
        ),
        (
            lambda: {"prompt_lookup": True, "num_draft_tokens": 0},
            "num_draft_tokens is 0; allowed are whole numbers from 1",
        ),
        (
            lambda: {"prompt_lookup": True, "num_draft_tokens": 2.5},
            "num_draft_tokens is 2.5; allowed are whole numbers from 1",
        ),
        (
            lambda: {"prompt_lookup": True, "kv_bits": 4},
            "kv_bits cannot be had with drafts; allowed are sampler and logits_processors",
        ),
    ],
)
def test_bad_arguments_are_one_line(generated, small, options, error):
    with pytest.raises(ValueError, match=error) as raised:
        generated(small, **options())
    assert "\n" not in str(raised.value)


def test_models_of_others_check_no_drafts(generated):
    with pytest.raises(ValueError, match="allowed is one of Factorization Memory"):
        generated(llama_model(), prompt_lookup=True)


@pytest.fixture
def fm(capsys):
    def run(*argv):
        status = cli.main(["generate", *map(str, argv)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def llama_folder(tmp_path, checkpoint):
    folder = tmp_path / "llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((checkpoint / name).read_bytes())
    weights = dict(tree_flatten(llama_model().parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    return folder


def test_the_command_writes_the_same_text(fm, checkpoint, llama_folder):
    asked = ("--model", checkpoint, "-p", "the river", "-m", 30, "--temp", 1, "--seed", 5)
    status, plain, _ = fm(*asked)
    assert status == 0
    for options in (
        ("--prompt-lookup",),
        ("--draft-model", checkpoint, "--num-draft-tokens", 4),
        ("--draft-model", llama_folder),
    ):
        status, out, err = fm(*asked, *options)
        assert (status, err) == (0, "")
        assert out.split("\nPrompt: ")[0] == plain.split("\nPrompt: ")[0]
        assert " of the 30 tokens\n" in out
    assert "Drafts: " not in plain


def test_the_command_refuses_in_one_line(fm, checkpoint, llama_folder, tmp_path):
    asked = ("--model", checkpoint, "-p", "the river")
    vocabulary = json.loads((llama_folder / "tokenizer.json").read_text())
    pieces = vocabulary["model"]["vocab"]
    pieces["<other>"] = pieces.pop("<0x41>")
    (llama_folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    for options, error in (
        (("--num-draft-tokens", 4), "--num-draft-tokens takes --draft-model or --prompt-lookup"),
        (("--draft-model", llama_folder), "has another tokenizer than the model"),
        (("--draft-model", tmp_path / "nothing"), "no model at"),
    ):
        status, out, err = fm(*asked, *options)
        assert (status, out) == (2, "")
        assert error in err
        assert err.count("\n") == 1
    (llama_folder / "model.safetensors").write_bytes(b"no weights")
    status, _, err = fm(*asked, "--draft-model", llama_folder)
    assert status == 2
    assert "cannot be used" in err and err.count("\n") == 1
