"""Loading: what loads, and the one line that says why something does not."""

from __future__ import annotations

import json
import os
import re
import sys

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache, save_prompt_cache
from mlx_lm.tuner.utils import linear_to_lora_layers
from tiny import CONFIG

import fm_mlx
from fm_mlx import loading
from fm_mlx.commands import cli
from fm_mlx.loading import check_state, load_state
from fm_mlx.weights import TELLING


def refused(error: type[Exception], *facts: str, path, **options) -> None:
    """Loading raises `error`, in one line that has all the facts."""
    with pytest.raises(error) as caught:
        fm_mlx.load(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    for fact in facts:
        assert str(fact) in message


def test_mlx_lm_loads_our_class(checkpoint):
    model, tokenizer = mlx_lm.load(str(checkpoint))
    ours, our_tokenizer, config = fm_mlx.load(checkpoint, return_config=True)
    assert type(model) is type(ours) is fm_mlx.Model
    assert config == CONFIG
    assert our_tokenizer.encode("the river") == tokenizer.encode("the river")
    tokens = mx.array([our_tokenizer.encode("the river writes")])
    assert mx.array_equal(model(tokens), ours(tokens))


def test_loading_prints_nothing(checkpoint, capfd):
    fm_mlx.load(checkpoint)
    assert capfd.readouterr() == ("", "")


def test_no_path_is_the_packaged_model(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "PRETRAINED", checkpoint)
    model, _ = fm_mlx.load()
    assert model.args.vocab_size == CONFIG["vocab_size"]
    monkeypatch.setattr(loading, "PRETRAINED", tmp_path / "away")
    refused(FileNotFoundError, "package's own model is missing", tmp_path / "away", path=None)


def test_model_config_replaces_keys(checkpoint):
    model, _ = fm_mlx.load(checkpoint, model_config={"num_active_states": 1})
    assert model.args.num_active_states == 1
    assert model.layers[0].memory.num_active_states == 1


def test_quantised_checkpoint_loads(checkpoint, tmp_path, loaded):
    folder = tmp_path / "quantised"
    mlx_lm.convert(str(checkpoint), str(folder), quantize=True, q_bits=4, q_group_size=32)
    model, tokenizer = fm_mlx.load(folder)
    layer = model.layers[0]
    assert isinstance(layer.memory.in_proj, nn.QuantizedLinear)
    assert layer.memory.in_proj.bits == 4
    assert layer.memory.router.weight.dtype == mx.float32
    whole, _ = loaded
    assert mx.array_equal(layer.memory.router.weight, whole.layers[0].memory.router.weight)
    tokens = mx.array([tokenizer.encode("the river writes long text")])
    quantised, exact = model(tokens), whole(tokens)
    error = mx.linalg.norm(quantised - exact) / mx.linalg.norm(exact)
    assert 0 < error.item() < 0.5


@pytest.mark.parametrize("path", ["nosuch-model", "nosuch/model", "/nosuch/folder/model"])
def test_no_such_model(path):
    refused(FileNotFoundError, f"no model {'at ' if path[0] == '/' else ''}{path}", path=path)


def test_file_instead_of_folder(checkpoint):
    path = checkpoint / "model.safetensors"
    refused(ValueError, path, "is a file; allowed is a model folder", path=path)


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ("{", ["config.json is not JSON", "line 1"]),
        (b"\xff\xfe{", ["config.json is not JSON", "utf-8"]),
        ("[1, 2]", ["config.json holds a list; allowed is an object"]),
        ('{"model_type": "llama"}', ["model_type is 'llama'", "'factorization_memory'", "mlx-lm"]),
        ("{}", ["model_type is None; allowed is 'factorization_memory'"]),
    ],
)
def test_broken_and_foreign_configs(changed, content, facts):
    folder = changed()
    content = content if isinstance(content, bytes) else content.encode()
    (folder / "config.json").write_bytes(content)
    refused(ValueError, folder / "config.json", *facts, path=folder)


@pytest.mark.parametrize(
    ("key", "value", "fact"),
    [
        ("num_active_states", 9, "num_active_states is 9; allowed are 1 to 8"),
        ("num_active_states", 0, "num_active_states is 0"),
        ("hidden_size", "64", "hidden_size is '64'"),
        ("affinity_temperature", 0, "affinity_temperature is 0"),
        ("quantization", 4, "quantization is 4; allowed is an object with group_size and bits"),
    ],
)
def test_bad_values(changed, key, value, fact):
    folder = changed(config={key: value})
    refused(ValueError, folder / "config.json", fact, path=folder)


def test_code_of_a_checkpoint_runs_only_if_trusted(changed):
    folder = changed(config={"model_file": "own.py"})
    (folder / "own.py").write_text(
        "import sys\nsys.own_code_ran = True\nfrom fm_mlx.model import Model, ModelArgs\n"
    )
    refused(ValueError, "config.json", "'own.py'", "trust_remote_code", path=folder)
    fm_mlx.load(folder, model_config={"model_file": None})
    assert not hasattr(sys, "own_code_ran")
    try:
        fm_mlx.load(folder, trust_remote_code=True)
        assert sys.own_code_ran
    finally:
        del sys.own_code_ran


def test_missing_files(changed, checkpoint, tmp_path):
    folder = changed(without=("config.json",))
    refused(FileNotFoundError, f"no config.json in {folder}", path=folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    weights = (folder / "model.safetensors").rename(tmp_path / "kept")
    refused(FileNotFoundError, f"no weights (model*.safetensors) in {folder}", path=folder)
    weights.rename(folder / "model.safetensors")
    (folder / "tokenizer.json").unlink()
    refused(FileNotFoundError, f"no tokenizer in {folder}", "tokenizer.json", path=folder)


def test_missing_weights_are_named(changed):
    norm, router = "model.norm.weight", "model.layers.1.memory.router.weight"
    folder = changed(weights={norm: None, router: None})
    refused(ValueError, folder, "Missing 2 parameters", norm, router, path=folder)


def test_many_missing_weights_are_counted(changed, checkpoint):
    names = sorted(set(mx.load(str(checkpoint / "model.safetensors"))) - set(TELLING))
    folder = changed(weights=dict.fromkeys(names[:12]))
    facts = [names[0], names[1], names[2], "and 9 more", "Missing 12 parameters"]
    refused(ValueError, *facts, path=folder)


def test_unexpected_weights_are_named(changed):
    folder = changed(weights={"model.layers.0.attention.weight": mx.zeros((2, 2))})
    refused(ValueError, "not in model", "model.layers.0.attention.weight", path=folder)


def test_wrong_shapes_are_named(changed):
    folder = changed(weights={"model.norm.weight": mx.zeros(3)})
    refused(ValueError, "(64,)", "(3,)", "model.norm.weight", path=folder)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"x" * 99, lambda b: b""])
def test_broken_weight_files(changed, damage):
    folder = changed()
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    refused(ValueError, f"{path} is not a whole safetensors file", path=folder)


@pytest.mark.parametrize("content", ["{", '{"model": 3}', '{"added_tokens": [], "model": {}}'])
def test_broken_tokenizer(changed, content):
    folder = changed()
    (folder / "tokenizer.json").write_text(content)
    refused(ValueError, f"the tokenizer in {folder} cannot be used", path=folder)


def test_tokenizer_of_another_model(changed):
    folder = changed(
        config={"vocab_size": 500},
        weights={
            "model.embed_tokens.weight": mx.zeros((500, 64)),
            "lm_head.weight": mx.zeros((500, 64)),
        },
    )
    refused(ValueError, "has 512 tokens; the model's vocab_size is 500", path=folder)


@pytest.fixture
def adapters(checkpoint, tmp_path):
    """A folder of LoRA adapters that change the output."""
    model, _ = mlx_lm.load(str(checkpoint))
    model.freeze()
    lora = {"rank": 4, "scale": 10.0, "dropout": 0.0}
    linear_to_lora_layers(model, 2, lora)
    weights = {
        name: mx.random.normal(weight.shape)
        for name, weight in tree_flatten(model.trainable_parameters())
        if "lora" in name
    }
    folder = tmp_path / "adapters"
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": lora}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_adapters_are_put_on(checkpoint, adapters, loaded):
    adapted, _ = fm_mlx.load(checkpoint, adapter_path=adapters)
    assert not any(module.training for _, module in adapted.named_modules())
    theirs, _ = mlx_lm.load(str(checkpoint), adapter_path=str(adapters))
    tokens = mx.array([[5, 300, 4]])
    assert mx.array_equal(adapted(tokens), theirs(tokens))
    assert not mx.allclose(adapted(tokens), loaded[0](tokens))


def test_bad_adapters(checkpoint, adapters):
    def bad(error, *facts, folder=adapters):
        refused(error, *facts, path=checkpoint, adapter_path=folder)

    away = adapters / "away"
    bad(FileNotFoundError, f"no adapters at {away}", folder=away)
    config = adapters / "adapter_config.json"
    content = config.read_text()
    config.write_text("{")
    bad(ValueError, "adapter_config.json is not JSON")
    config.write_text("{}")
    bad(ValueError, f"the adapters in {adapters} cannot be used", "num_layers")
    config.unlink()
    bad(FileNotFoundError, f"no adapter_config.json in {adapters}")
    config.write_text(content)
    weights = adapters / "adapters.safetensors"
    weights.write_bytes(b"garbage")
    bad(ValueError, f"the adapters in {adapters} cannot be used")
    mx.save_safetensors(str(weights), {"model.foreign": mx.zeros(2)})
    bad(ValueError, "model.foreign: not an adapter parameter")
    weights.unlink()
    bad(FileNotFoundError, f"no adapters.safetensors in {adapters}")


def test_saved_states_are_checked(loaded, tmp_path):
    model, _ = loaded
    path = tmp_path / "state.safetensors"
    with pytest.raises(FileNotFoundError, match=f"no saved state at {re.escape(str(path))}"):
        load_state(path)
    path.write_bytes(b"garbage")
    with pytest.raises(ValueError, match="is not a saved state"):
        load_state(path)
    mx.save_safetensors(str(path), {"weight": mx.zeros(2)}, {"format": "mlx"})
    with pytest.raises(ValueError, match="is not a saved state"):
        load_state(path)

    cache = make_prompt_cache(model)
    mx.eval(model(mx.array([[1, 2]]), cache=cache))
    save_prompt_cache(str(path), cache)
    restored, metadata = load_state(path)
    assert metadata == {}
    check_state(restored, model, path)
    assert mx.array_equal(restored[1][0], cache[1][0])
    with pytest.raises(ValueError, match="holds the state of 1 layers; the model has 2"):
        check_state(restored[:1], model, path)
    other = fm_mlx.Model(fm_mlx.ModelArgs.from_dict(CONFIG | {"num_memory_states": 16}))
    with pytest.raises(ValueError, match=r"\(1, 8, 64\).*the model's state is \(1, 16, 64\)"):
        check_state(restored, other, path)


def rewritten(path, change) -> None:
    """Change the header of a safetensors file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    text = change(header)
    text = (text if isinstance(text, str) else json.dumps(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


NORM, GATE = "model.norm.weight", "model.layers.0.mlp.gate_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda h: h[NORM].update(dtype="I32"), f"{NORM} in .* is I32; allowed are F32, F16, BF16"),
        (lambda h: h[NORM].update(dtype="U32"), f"{NORM} in .* is U32: no weight that is quant"),
        (
            lambda h: h[UP].update(data_offsets=h[GATE]["data_offsets"]),
            "is not a whole safetensors file",
        ),
        (
            lambda h: json.dumps(h)[:-1] + f', "{NORM}": {json.dumps(h[NORM])}}}',
            f"names '{NORM}' twice",
        ),
        (
            lambda h: h.update({"model.layers.999999999.x": h.pop(NORM)}),
            "there are weights of layer 999999999 and none of layer 2",
        ),
    ],
    ids=["integers", "packed bits", "overlap", "twice", "a layer far away"],
)
def test_files_that_are_no_weights(changed, capsys, tmp_path, change, fact):
    folder = changed()
    rewritten(folder / "model.safetensors", change)
    with pytest.raises(ValueError, match=fact):
        fm_mlx.load(folder)
    out = tmp_path / "out"
    argv = ["convert", "--hf-path", str(folder), "--mlx-path", str(out), "--no-parity"]
    assert cli.main(argv) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("indexed", [False, True])
def test_a_stray_file_of_weights(changed, indexed):
    """mlx-lm would take what it finds, in any order."""
    folder = changed()
    weights = mx.load(str(folder / "model.safetensors"))
    mx.save_safetensors(
        str(folder / "model-old.safetensors"), {name: 2 * x for name, x in weights.items()}
    )
    if indexed:
        weight_map = dict.fromkeys(weights, "model.safetensors")
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
    fact = "is not named by model.safetensors.index.json" if indexed else "which another file of"
    with pytest.raises(ValueError, match=fact):
        fm_mlx.load(folder)


@pytest.mark.parametrize(
    ("key", "value", "fact"),
    [
        ("num_hidden_layers", 10**9, "num_hidden_layers is 1000000000 in the config; the weights"),
        ("hidden_size", 2**31 - 1, "hidden_size is 2147483647 in the config; the weights say 64"),
        ("vocab_size", 2**31, "vocab_size is 2147483648; allowed are 1 to 2147483647"),
        ("memory_size", 2**63, "memory_size is 9223372036854775808; allowed are"),
        ("quantization", 3, "quantization is 3; allowed is an object"),
        ("quantization", {"group_size": "x", "bits": 4}, "whole numbers group_size and bits"),
        ("quantization_config", {"quant_method": "awq"}, "others than mlx-lm quantised"),
        ("quantization_config", 3, "quantization_config is 3; allowed is an object"),
        ("architectures", 3, "architectures is 3; allowed is a list"),
        ("model_file", 3, "asks to run the checkpoint's own code"),
        ("eos_token_id", {"a": 1}, "eos_token_id is {'a': 1}; allowed is a token's number"),
        ("eos_token_id", ["x"], "eos_token_id is 'x'; allowed are whole numbers"),
    ],
)
def test_configs_that_ask_for_the_impossible(changed, key, value, fact):
    """Held against the weights before anything is built."""
    with pytest.raises(ValueError, match=re.escape(fact)):
        fm_mlx.load(changed(config={key: value}))


def test_what_mlx_lm_looks_for_elsewhere_is_left(changed):
    """A quantisation in text_config or in a file of NVIDIA's is no quantisation of ours."""
    folder = changed(config={"text_config": {"quantization_config": {"quant_method": "gptq"}}})
    (folder / "hf_quant_config.json").write_text('{"quant_algo": "FP8"}')
    _, _, config = fm_mlx.load(folder, return_config=True)
    assert "quantization_config" not in config


@pytest.mark.parametrize("text", ['{"a":' * 5000, "[" * 100_000])
def test_a_config_nested_too_deeply(changed, text):
    folder = changed()
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is n"):
        fm_mlx.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_named_pipe_is_not_waited_for(changed, capsys, tmp_path, name):
    folder = changed(without=(name,))
    os.mkfifo(folder / name)
    with pytest.raises(ValueError, match=f"{name} is a pipe, socket or device"):
        fm_mlx.load(folder)
    argv = ["convert", "--hf-path", str(folder), "--mlx-path", str(tmp_path / "out")]
    assert cli.main(argv) == 2
    assert f"{name} is a pipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("chat_template", "{{ ''.__class__.__mro__ }}"),
        ("chat_template", "{% for"),
        ("chat_template", "no template"),
        ("chat_template", 3),
        ("chat_template", "{{ 'a' * 10**7 }}"),
        pytest.param("chat_template", "{{ 'a' * 10**9 }}", marks=pytest.mark.slow),
        ("model_max_length", "x"),
    ],
)
def test_tokenizers_that_cannot_be_used(changed, capsys, key, value):
    folder = changed()
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert cli.main(["generate", "--model", str(folder), "-p", "the river"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "chat template" in err if key == "chat_template" else "the tokenizer in" in err
