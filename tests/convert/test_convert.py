"""A trained PyTorch model converts and agrees, whatever it is stored in and called."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model
from safetensors.torch import save_file
from training import CONFIG, UNSEEN

import fm_mlx
from fm_mlx.commands import cli
from fm_mlx.convert import parity
from fm_mlx.convert.export import model_weights
from fm_mlx.convert.torch_reference import LanguageModel
from fm_mlx.loading import PRETRAINED

GREEDY = 200


def loaded(folder: Path):
    return load_model(folder, model_config={"model_file": None})[0]


def agrees(status, out, err, folder) -> dict:
    """A conversion that went well; its parity.json."""
    assert status == 0, (out, err)
    report = json.loads((folder / "parity.json").read_text())
    assert report["passed"]
    assert max(report["max_logit"]) < 1e-4
    assert report["lengths"][1] > 32
    return report


def same_weights(folder: Path, trained) -> None:
    """Every weight is that of the trained model, bit for bit."""
    model = loaded(folder)
    got = parity.to_reference(model_weights(model))
    assert set(got) == set(trained.state)
    for name, tensor in trained.state.items():
        assert np.array_equal(np.array(got[name].read()), tensor.numpy()), name


class TestAgreement:
    def test_report(self, trained, source, convert):
        report = agrees(*convert(source()))
        assert report["first_layer"] is None
        assert len(report["layers"]) == CONFIG.num_hidden_layers + 1
        assert min(report["top1"]) == 1.0
        assert report["loss"][0] == pytest.approx(report["loss"][1], abs=1e-5)

    def test_200_greedy_tokens(self, trained, source, convert):
        """Token for token: the reference step by step, MLX as mlx-lm generates."""
        *_, folder = convert(source())
        prompt = list(b"The standard ")
        wanted, states, tokens = [], None, torch.tensor([prompt])
        with torch.no_grad():
            for _ in range(GREEDY):
                logits, states = trained.model(tokens, states, loop=True, return_states=True)
                tokens = logits[:, -1].argmax(-1)[None]
                wanted.append(tokens.item())
        steps = generate_step(mx.array(prompt), loaded(folder), max_tokens=GREEDY)
        assert [token for token, _ in steps] == wanted

    def test_a_difference_is_reported_and_its_block_named(self, source, convert, monkeypatch):
        """The reference gets another weight in block 1: status 1."""
        plain = parity.to_reference

        def changed(weights):
            state = plain(weights)
            name = "blocks.1.memory.w_out.weight"
            weight = state[name]
            return state | {name: replace(weight, read=lambda: weight.read() * 1.01)}

        monkeypatch.setattr(parity, "to_reference", changed)
        status, out, _, folder = convert(source())
        assert status == 1
        assert "DIFFERS" in out and "block 1" in out
        report = json.loads((folder / "parity.json").read_text())
        assert not report["passed"] and report["first_layer"] == 2

    def test_without_torch_it_says_what_was_not_checked(
        self, trained, convert, monkeypatch, tmp_path
    ):
        folder = tmp_path / "source"
        folder.mkdir()
        save_file(trained.state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(trained.config()))
        monkeypatch.setattr(parity, "torch_is_there", lambda: False)
        status, out, _, made = convert(folder)
        assert status == 0
        assert "Not checked (PyTorch is not installed)" in out
        same_weights(made, trained)


class TestFiles:
    @pytest.mark.parametrize("name", ["model.pt", "model.pth", "pytorch_model.bin", "last.ckpt"])
    def test_pickles(self, trained, source, convert, name):
        result = convert(source(name=name))
        agrees(*result)
        same_weights(result[-1], trained)

    def test_a_file_alone(self, trained, source, convert):
        agrees(*convert(source() / "model.pt"))

    def test_old_format(self, trained, source, convert):
        folder = source()
        torch.save(trained.state, folder / "model.pt", _use_new_zipfile_serialization=False)
        agrees(*convert(folder))

    @pytest.mark.parametrize("kind", ["bin", "safetensors"])
    def test_shards(self, trained, convert, tmp_path, kind):
        folder = tmp_path / "source"
        folder.mkdir()
        names = sorted(trained.state)
        weight_map = {}
        for i, part in enumerate((names[::3], names[1::3], names[2::3]), 1):
            file = f"model-{i:05d}-of-00003.{kind}"
            shard = {name: trained.state[name] for name in part}
            (save_file if kind == "safetensors" else torch.save)(shard, folder / file)
            weight_map |= dict.fromkeys(part, file)
        stem = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
        (folder / f"{stem}.index.json").write_text(json.dumps({"weight_map": weight_map}))
        (folder / "config.json").write_text(json.dumps(trained.config()))
        torch.save({"step": 3}, folder / "optimizer.bin")  # left where it is
        result = convert(folder)
        agrees(*result)
        same_weights(result[-1], trained)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
    @pytest.mark.parametrize("kind", ["pt", "safetensors"])
    def test_dtypes(self, trained, convert, tmp_path, dtype, kind):
        """16-bit weights stay so, but for router and norms; float64 becomes float32."""
        folder = tmp_path / "source"
        folder.mkdir()
        state = {name: tensor.to(dtype) for name, tensor in trained.state.items()}
        (save_file if kind == "safetensors" else torch.save)(state, folder / f"model.{kind}")
        (folder / "config.json").write_text(json.dumps(trained.config()))
        status, out, err, made = convert(folder)
        assert status == 0, out + err
        parameters = dict(tree_flatten(loaded(made).parameters()))
        half = dtype != torch.float64
        wanted = getattr(mx, str(dtype).removeprefix("torch.")) if half else mx.float32
        for name, weight in parameters.items():
            precise = name.endswith(("router.weight", "norm.weight"))
            assert weight.dtype == (mx.float32 if precise else wanted), name
        head = state["head.weight"].float().numpy()
        assert np.array_equal(np.array(parameters["lm_head.weight"].astype(mx.float32)), head)

    def test_config_that_is_missing_or_wrong(self, trained, source, convert):
        """Shapes are right; k, tau and eps come from options."""
        result = convert(source(config={}), *UNSEEN)
        agrees(*result)
        config = json.loads((result[-1] / "config.json").read_text())
        wanted = trained.config()
        assert {key: config[key] for key in wanted} == wanted

    def test_config_that_contradicts_the_shapes(self, trained, source, convert):
        wrong = trained.config() | {"num_memory_states": 64, "hidden_size": 12}
        status, out, _, folder = convert(source(config=wrong))
        assert status == 0
        assert "config.json says num_memory_states = 64; the weights say 10" in out
        assert loaded(folder).args.hidden_size == CONFIG.hidden_size


@pytest.mark.parametrize("config_says", [True, False])
def test_product_keys(source, convert, config_says):
    """No shape tells them: the config does, or an option."""
    torch.manual_seed(0)
    args = replace(CONFIG, router="product", num_memory_states=25)
    model = LanguageModel(args)
    config = {"model_type": "factorization_memory", **asdict(args)}
    path = source(model.state_dict(), config if config_says else {})
    options = [] if config_says else [*UNSEEN, "--router", "product"]
    *result, folder = convert(path, *options)
    agrees(*result, folder)
    got = loaded(folder)
    assert (got.args.router, got.args.num_memory_states) == ("product", 25)
    assert got.layers[0].memory.router.weight.shape == (12, CONFIG.hidden_size)


def wrapped(trained, prefix: str) -> dict:
    return {prefix + name: tensor for name, tensor in trained.state.items()}


class TestWrappers:
    @pytest.mark.parametrize(
        "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "net."]
    )
    def test_prefixes(self, trained, source, convert, prefix):
        result = convert(source(wrapped(trained, prefix)))
        agrees(*result)
        assert "stripped" in result[1]
        same_weights(result[-1], trained)

    def test_fsdp_inside_names(self, trained, source, convert):
        state = {
            name.replace("blocks.", "blocks.", 1).replace(
                ".memory.", "._fsdp_wrapped_module.memory."
            ): t
            for name, t in trained.state.items()
        }
        result = convert(source(state))
        agrees(*result)
        same_weights(result[-1], trained)

    @pytest.mark.parametrize("nest", ["state_dict", "model_state_dict", "model"])
    def test_nesting(self, trained, source, convert, nest):
        """As Lightning and trainers save: weights beside an optimizer and numbers."""
        content = {nest: trained.state, "epoch": 3, "optimizer": {"state": {}, "lr": 0.1}}
        result = convert(source(content))
        agrees(*result)
        assert f"took {nest} out of model.pt" in result[1]

    @pytest.mark.parametrize("how", ["nested", "prefixed"])
    def test_moving_average(self, trained, source, convert, how):
        """The weights by default, the average with --ema; the choice is said."""
        average = {name: tensor * 0.5 for name, tensor in trained.state.items()}
        content = {"model": trained.state, "ema": average}
        if how == "prefixed":
            content = trained.state | {f"ema.{name}": tensor for name, tensor in average.items()}
        folder = source(content)
        status, out, _, made = convert(folder)
        assert status == 0 and "moving average" in out
        same_weights(made, trained)
        for path in made.iterdir():
            path.unlink()
        made.rmdir()
        status, _, _, made = convert(folder, "--ema")
        assert status == 0
        got = dict(tree_flatten(loaded(made).parameters()))["lm_head.weight"]
        assert np.array_equal(np.array(got), average["head.weight"].numpy())


HF = {
    "embedding": "model.embed_tokens",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "memory.w_in": "self_attn.v_proj",
    "memory.w_out": "self_attn.o_proj",
    "memory.w_alpha": "self_attn.alpha_proj",
    "memory.w_eta": "self_attn.eta_proj",
    "memory.w_mu": "self_attn.mu_proj",
}
FLA = HF | {
    "embedding": "model.embeddings",
    "norm1": "attn_norm",
    "norm2": "mlp_norm",
    "memory.w_in": "attn.v_proj",
    "memory.w_out": "attn.o_proj",
    "memory.w_alpha": "attn.a_proj",
    "memory.w_eta": "attn.e_proj",
    "memory.w_mu": "attn.m_proj",
}


def renamed(trained, names: dict[str, str]) -> dict[str, torch.Tensor]:
    def new(name: str) -> str:
        module, _, _ = name.rpartition(".")
        if module == "norm":
            return "model.norm.weight"
        if module == "head":
            return "lm_head.weight"
        if module == "embedding":
            return f"{names['embedding']}.weight"
        _, index, rest = module.split(".", 2)
        rest = names.get(rest, rest)
        if rest.startswith("mlp."):
            rest += "_proj"
        return f"model.layers.{index}.{rest}.weight"

    return {new(name): tensor for name, tensor in trained.state.items()}


class TestNames:
    @pytest.mark.parametrize(("names", "said"), [(HF, "Hugging Face"), (FLA, "flash-linear")])
    def test_builtin_maps(self, trained, source, convert, names, said):
        result = convert(source(renamed(trained, names)))
        agrees(*result)
        assert f"names: {said}" in result[1]
        same_weights(result[-1], trained)

    @pytest.mark.parametrize("suffix", ["json", "toml"])
    def test_key_map(self, trained, source, convert, tmp_path, suffix):
        """Fused, transposed and oddly named: [W_i; W_alpha; w_eta; w_mu], gate_up, V^T."""
        state, odd = trained.state, {}
        for i in range(CONFIG.num_hidden_layers):
            block, new = f"blocks.{i}.", f"tower/{i}/"
            parts = ("w_in", "w_alpha", "w_eta", "w_mu")
            odd[f"{new}fused"] = torch.cat([state[f"{block}memory.{p}.weight"] for p in parts])
            odd[f"{new}out"] = state[f"{block}memory.w_out.weight"].T.contiguous()
            odd[f"{new}gate_up"] = torch.cat(
                [state[f"{block}mlp.{p}.weight"] for p in ("gate", "up")]
            )
            odd[f"{new}down"] = state[f"{block}mlp.down.weight"]
            odd[f"{new}scale_a"] = state[f"{block}norm1.weight"]
            odd[f"{new}scale_b"] = state[f"{block}norm2.weight"]
            odd[f"{new}mask_buffer"] = torch.zeros(3)
        odd["tok"] = state["embedding.weight"]
        odd["final"] = state["norm.weight"]
        odd["logits"] = state["head.weight"].T.contiguous()
        layer = r"^tower/(\d+)/"
        split = [
            {"match": rf"{layer}gate_up$", "into": [
                r"model.layers.\1.mlp.gate_proj.weight", r"model.layers.\1.mlp.up_proj.weight"]},
            {"match": rf"{layer}fused$", "into": [
                r"model.layers.\1.memory.in_proj.weight", r"model.layers.\1.memory.router.weight"]},
        ]  # fmt: skip
        if suffix == "toml":  # sizes given
            split[1]["sizes"] = [CONFIG.memory_size, CONFIG.num_memory_states + 2]
        key_map = {
            "ignore": ["mask_buffer$"],
            "transpose": ["/out$", "^logits$"],
            "rename": [
                [rf"{layer}out$", r"model.layers.\1.memory.out_proj.weight"],
                [rf"{layer}down$", r"model.layers.\1.mlp.down_proj.weight"],
                [rf"{layer}scale_a$", r"model.layers.\1.memory_norm.weight"],
                [rf"{layer}scale_b$", r"model.layers.\1.mlp_norm.weight"],
                ["^tok$", "model.embed_tokens.weight"],
                ["^final$", "model.norm.weight"],
                ["^logits$", "lm_head.weight"],
                ["^lm_head$", "lm_head.bias"],
            ],
            "split": split,
        }
        path = tmp_path / f"map.{suffix}"
        path.write_text(json.dumps(key_map) if suffix == "json" else as_toml(key_map))
        result = convert(source(odd), "--key-map", path)
        agrees(*result)
        assert [line for line in result[1].splitlines() if "matches no name" in line] == [
            f"  rename 8 of {path}: '^lm_head$' matches no name"
        ]
        same_weights(result[-1], trained)

    def test_concat(self, trained, source, convert, tmp_path):
        """The router from parts of its own, one of them a vector."""
        state = {name.replace("w_alpha", "score"): t for name, t in trained.state.items()}
        state = {n: t.flatten() if n.endswith("w_eta.weight") else t for n, t in state.items()}
        key_map = {
            "rename": [
                [r"^embedding\.", "model.embed_tokens."],
                [r"^blocks\.(\d+)\.norm1", r"model.layers.\1.memory_norm"],
                [r"^blocks\.(\d+)\.norm2", r"model.layers.\1.mlp_norm"],
                [r"^blocks\.", "model.layers."],
                [r"\.mlp\.(\w+)\.", r".mlp.\1_proj."],
                [r"\.w_in\.", ".in_proj."],
                [r"\.w_out\.", ".out_proj."],
                [r"^norm\.", "model.norm."],
                [r"^head\.", "lm_head."],
            ],
            "concat": [
                {"match": [r"\.score\.", r"\.w_eta\.", r"\.w_mu\."], "into": ".router."},
            ],
        }
        path = tmp_path / "map.json"
        path.write_text(json.dumps(key_map))
        result = convert(source(state), "--key-map", path)
        agrees(*result)
        same_weights(result[-1], trained)


def as_toml(content: dict) -> str:
    """Arrays and inline tables are enough."""

    def value(x) -> str:
        if isinstance(x, dict):
            return "{" + ", ".join(f"{k} = {value(v)}" for k, v in x.items()) + "}"
        if isinstance(x, list):
            return "[" + ", ".join(map(value, x)) + "]"
        return json.dumps(x)

    text = "\n".join(f"{key} = {value(entry)}" for key, entry in content.items())
    assert tomllib.loads(text) == content
    return text


class TestHeads:
    def test_tied_by_storage(self, trained, source, convert):
        state = trained.state
        state["head.weight"] = state["embedding.weight"]
        status, out, _, folder = convert(source(state))
        assert status == 0
        assert "tied" in out
        assert loaded(folder).args.tie_word_embeddings
        assert not any("lm_head" in name for name, _ in tree_flatten(loaded(folder).parameters()))

    def test_tied_by_numbers(self, trained, source, convert):
        state = trained.state
        state["head.weight"] = state["embedding.weight"].clone()
        status, out, _, folder = convert(source(state))
        assert status == 0 and "tied" in out
        assert loaded(folder).args.tie_word_embeddings

    def test_no_head_is_a_tied_one(self, trained, source, convert):
        state = trained.state
        del state["head.weight"]
        status, _, _, folder = convert(source(state))
        assert status == 0
        assert loaded(folder).args.tie_word_embeddings


class TestQuantised:
    @pytest.mark.parametrize(
        "options",
        [
            ("-q", "--q-group-size", "32"),
            ("-q", "--q-bits", "8", "--q-group-size", "32"),
            ("--quant-predicate", "mixed_4_6", "--q-group-size", "32"),
            ("-q", "--q-mode", "mxfp4"),
        ],
        ids=lambda options: " ".join(options),
    )
    def test_router_and_norms_stay_float32(self, convert, tmp_path, options):
        """And the loss on a real text is reported, of the packaged model."""
        exported = tmp_path / "torch"
        assert cli.main(["export", "--torch-path", str(exported)]) == 0
        status, out, err, folder = convert(exported, *options)
        assert status == 0, err
        parameters = dict(tree_flatten(loaded(folder).parameters()))
        assert sum(name.endswith(".scales") for name in parameters) > 20
        for name, weight in parameters.items():
            if name.endswith(("router.weight", "norm.weight")):
                assert weight.dtype == mx.float32, name
        report = json.loads((folder / "parity.json").read_text())
        reference, quantised = report["loss"]
        assert -0.05 < quantised - reference < 0.3
        assert f"{quantised:.5f} nats/token" in out
        assert fm_mlx.generate(*fm_mlx.load(folder), "And God", max_tokens=5)


class TestExport:
    @pytest.mark.parametrize("kind", ["safetensors", "pt"])
    def test_packaged_model_there_and_back(self, convert, tmp_path, kind):
        """Bit for bit, and the reference reads it."""
        exported = tmp_path / "torch"
        command = ["export", "--torch-path", str(exported), "--format", kind]
        assert cli.main(command) == 0
        result = convert(exported)
        agrees(*result)
        before = dict(tree_flatten(fm_mlx.load()[0].parameters()))
        after = dict(tree_flatten(fm_mlx.load(result[-1])[0].parameters()))
        assert set(before) == set(after)
        for name, weight in before.items():
            assert weight.dtype == after[name].dtype
            assert mx.array_equal(weight, after[name]), name
        wanted = fm_mlx.generate(*fm_mlx.load(), "In the beginning", max_tokens=20)
        assert (
            fm_mlx.generate(*fm_mlx.load(result[-1]), "In the beginning", max_tokens=20) == wanted
        )

    def test_bfloat16(self, trained, source, convert, tmp_path):
        *_, folder = convert(source(), "--dtype", "bfloat16")
        for kind in ("safetensors", "pt"):
            out = tmp_path / kind
            command = ["export", "--model", str(folder), "--torch-path", str(out), "--format", kind]
            assert cli.main(command) == 2, "no tokenizer: said, nothing written"
            assert not out.exists()

    def test_quantised_models_are_refused(self, convert, tmp_path, capsys):
        exported = tmp_path / "torch"
        cli.main(["export", "--torch-path", str(exported)])
        *_, folder = convert(exported, "-q", "--no-parity")
        out = tmp_path / "again"
        assert cli.main(["export", "--model", str(folder), "--torch-path", str(out)]) == 2
        assert "quantised" in capsys.readouterr().err
        assert not out.exists()


def test_bundled_code(convert, tmp_path):
    """mlx-lm's own loader runs it when trusted, ours without."""
    exported = tmp_path / "torch"
    cli.main(["export", "--torch-path", str(exported)])
    *_, folder = convert(exported, "--bundle-code", "--no-parity")
    model, _ = load_model(folder, trust_remote_code=True)
    assert (folder / "factorization_memory.py").is_file()
    assert type(model).__name__ == "Model"
    fm_mlx.load(folder, model_config={"model_file": None})


def test_tokenizer_from_sentencepiece(convert, tmp_path):
    exported = tmp_path / "torch"
    cli.main(["export", "--torch-path", str(exported)])
    (exported / "tokenizer.json").unlink()
    assert (exported / "tokenizer.model").is_file(), "the packaged model has one"
    status, out, _, folder = convert(exported, "--no-parity")
    assert status == 0
    assert (folder / "tokenizer.model").is_file() and (folder / "tokenizer.json").is_file(), out
    text = (PRETRAINED / "README.md").read_text()[:500]
    ours, theirs = fm_mlx.load(folder)[1], fm_mlx.load()[1]
    assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
