"""Broken input ends in one clear line, exit status 2, and nothing written."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from training import UNSEEN

from fm_mlx.commands import cli
from fm_mlx.convert.key_map import key_map

OK = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def refused(result: tuple[int, str, str, Path], *texts: str) -> None:
    status, out, err, folder = result
    assert status == 2, (status, out, err)
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    for text in texts:
        assert text in err, err
    assert not folder.exists()
    assert not list(folder.parent.glob(".mlx*")), "something half-written is left"


class RunsCode:
    """What a pickle must not do."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('the pickle ran')",))


def change(trained, **changes) -> dict[str, torch.Tensor]:
    """The state with tensors replaced or, where None, missing; ``__`` stands for a dot."""
    state = trained.state
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor
    return state


class TestFiles:
    def test_no_such_path(self, convert, tmp_path):
        refused(convert(tmp_path / "nothing" / "there"), "no model", "nothing")

    def test_empty_folder(self, convert, tmp_path):
        (tmp_path / "empty").mkdir()
        refused(convert(tmp_path / "empty"), "no weights in", ".safetensors")

    def test_unknown_kind(self, convert, tmp_path):
        (tmp_path / "weights.gguf").write_bytes(b"GGUF")
        refused(convert(tmp_path / "weights.gguf"), "weights.gguf", ".safetensors, .bin")

    @pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 100, b"PK\x03\x04 not a zip"])
    @pytest.mark.parametrize("suffix", ["safetensors", "pt"])
    def test_garbage(self, convert, tmp_path, content, suffix):
        path = tmp_path / f"model.{suffix}"
        path.write_bytes(content)
        refused(convert(path), f"model.{suffix}")

    @OK
    @given(share=st.floats(0, 0.999), kind=st.sampled_from(["safetensors", "pt"]))
    def test_cut_short(self, trained, source, convert, share, kind):
        folder = source()
        path = folder / "model.pt"
        if kind == "safetensors":
            path.unlink()
            path = folder / "model.safetensors"
            save_file(trained.state, path)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        refused(convert(path, "--no-parity"), path.name)

    @OK
    @given(at=st.integers(0, 400), byte=st.integers(0, 255))
    def test_a_wrong_byte_in_the_header(self, trained, convert, tmp_path, at, byte):
        """Converts, where the byte is one that does not matter, or is refused in one line."""
        path = tmp_path / "model.safetensors"
        content = bytearray(save({name: t for name, t in trained.state.items()}))
        content[at] = byte
        path.write_bytes(bytes(content))
        result = convert(path, *UNSEEN, "--no-parity")
        if result[0]:
            refused(result)
        else:
            shutil.rmtree(result[-1])

    def test_pickle_that_wants_to_run_code(self, source, convert):
        refused(convert(source({"w": RunsCode()})), "refused", "could run code")

    def test_plain_pickle_that_wants_to_run_code(self, convert, tmp_path):
        path = tmp_path / "model.bin"
        path.write_bytes(pickle.dumps(RunsCode()))
        refused(convert(path), "model.bin")

    def test_whole_module(self, source, convert):
        refused(convert(source(torch.nn.Linear(2, 2))), "refused", "state_dict")

    @pytest.mark.parametrize("content", [[torch.ones(2)], torch.ones(2), {"lr": 0.1}, {}])
    def test_no_dictionary_of_tensors(self, source, convert, content):
        refused(convert(source({"model": content} if content == {} else content)), "model.pt")

    def test_torch_is_missing(self, source, convert, monkeypatch):
        folder = source()
        monkeypatch.setitem(sys.modules, "torch", None)
        refused(convert(folder, "--no-parity"), "pip install 'fm-mlx[torch]'")

    def test_output_is_there(self, source, convert, tmp_path):
        (tmp_path / "mlx").mkdir()
        status, _, err, folder = convert(source())
        assert status == 2 and "is there already" in err
        assert not list(folder.iterdir())


class TestIndexes:
    def shards(self, trained, folder: Path, index) -> Path:
        folder.mkdir()
        save_file(trained.state, folder / "one.safetensors")
        text = index if isinstance(index, str) else json.dumps(index)
        (folder / "model.safetensors.index.json").write_text(text)
        return folder

    @pytest.mark.parametrize(
        ("index", "said"),
        [
            ("{", "is not JSON"),
            ("[1]", "holds a list"),
            ({}, "no weight_map"),
            ({"weight_map": {"a": "../one.safetensors"}}, "beside it"),
            ({"weight_map": {"a": "/etc/passwd"}}, "beside it"),
            ({"weight_map": {"a": "two.safetensors"}}, "two.safetensors, which is not there"),
            ({"weight_map": {"a.weight": "one.safetensors"}}, "a.weight, which no shard holds"),
        ],
    )
    def test_index(self, trained, convert, tmp_path, index, said):
        refused(convert(self.shards(trained, tmp_path / "source", index)), said)

    def test_tensor_in_two_shards(self, trained, convert, tmp_path):
        folder = tmp_path / "source"
        folder.mkdir()
        save_file(trained.state, folder / "model-1.safetensors")
        save_file({"norm.weight": torch.ones(48)}, folder / "model-2.safetensors")
        said = "norm.weight is in model-1.safetensors and again in model-2.safetensors"
        refused(convert(folder), said)


class TestTensors:
    @pytest.mark.parametrize(
        ("tensor", "said"),
        [
            (torch.ones(48).to(torch.float8_e4m3fn), "dequantise it first"),
            (torch.ones(48, dtype=torch.int8), "int8; allowed are float32"),
            (torch.ones(48, dtype=torch.bool), "bool; allowed are"),
            (torch.ones(48, dtype=torch.complex64), "complex64; allowed are"),
            (torch.ones(48).to_sparse(), "allowed are dense tensors"),
        ],
        ids=["fp8", "int8", "bool", "complex", "sparse"],
    )
    def test_dtypes(self, trained, source, convert, tensor, said):
        refused(convert(source(change(trained, norm__weight=tensor))), "norm.weight", said)

    def test_fp8_in_safetensors(self, trained, convert, tmp_path):
        path = tmp_path / "model.safetensors"
        weight = torch.ones(48).to(torch.float8_e5m2)
        save_file(change(trained, norm__weight=weight), path)
        refused(convert(path, *UNSEEN), "norm.weight", "F8_E5M2")

    @pytest.mark.parametrize("number", [float("nan"), float("inf")])
    @pytest.mark.parametrize("name", ["blocks.1.memory.w_eta.weight", "embedding.weight"])
    def test_not_finite(self, trained, source, convert, name, number):
        state = trained.state
        state[name][0, 3] = number
        refused(convert(source(state)), name, "NaN or infinite")

    def test_beyond_float16(self, trained, source, convert):
        state = trained.state
        state["blocks.0.mlp.up.weight"][1, 1] = 1e6
        said = "blocks.0.mlp.up.weight has numbers beyond float16"
        refused(convert(source(state), "--dtype", "float16"), said)


class TestModels:
    def test_left_over(self, trained, source, convert):
        state = change(trained, blocks__0__mlp__gate__bias=torch.ones(96))
        refused(convert(source(state)), "left over: blocks.0.mlp.gate.bias", "(96,)")

    def test_missing(self, trained, source, convert):
        state = change(trained, blocks__1__mlp__down__weight=None)
        refused(convert(source(state)), "missing: model.layers.1.mlp.down_proj.weight (48, 96)")

    def test_nearest_candidate(self, trained, source, convert):
        state = trained.state
        state["blocks.1.mlp.dwn.weight"] = state.pop("blocks.1.mlp.down.weight")
        result = convert(source(state))
        refused(
            result,
            "missing: model.layers.1.mlp.down_proj.weight",
            "nearest: model.layers.1.mlp.dwn",
        )

    def test_wrong_shape(self, trained, source, convert):
        state = change(trained, blocks__1__memory__w_out__weight=torch.ones(48, 31))
        refused(convert(source(state)), "blocks.1.memory.w_out.weight is (48, 31)", "(48, 32)")

    def test_half_a_router(self, trained, source, convert):
        state = change(trained, blocks__0__memory__w_mu__weight=None)
        refused(convert(source(state)), "w_mu")

    def test_a_layer_is_missing(self, trained, source, convert):
        state = {n: t for n, t in trained.state.items() if not n.startswith("blocks.0.")}
        refused(convert(source(state)))

    def test_names_nobody_knows(self, source, convert):
        refused(convert(source({"a.b": torch.ones(2), "c": torch.ones(3)})), "--key-map FILE")

    def test_stripped_names_collide(self, trained, source, convert):
        state = trained.state | {"module.norm.weight": torch.ones(48)}
        refused(convert(source(state)), "two tensors are called norm.weight")

    @pytest.mark.parametrize(
        ("config", "said"),
        [
            ({"num_active_states": 11}, "num_active_states is 11; allowed are 1 to 10"),
            ({"affinity_temperature": -1}, "affinity_temperature is -1"),
            ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
            ({"memory_norm_eps": 0}, "memory_norm_eps is 0"),
        ],
    )
    def test_config(self, trained, source, convert, config, said):
        refused(convert(source(config=trained.config() | config)), said)

    @pytest.mark.parametrize("text", ["{", "[]", "\x00\xff"])
    def test_config_that_is_none(self, source, convert, text):
        folder = source()
        (folder / "config.json").write_text(text)
        refused(convert(folder), "config.json")

    def test_what_no_shape_tells(self, source, convert):
        refused(
            convert(source(config={})), "no shape tells num_active_states", "--num-active-states X"
        )


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--num-active-states", "0"], "allowed are whole numbers from 1"),
            (["--num-active-states", "11"], "num_active_states is 11"),
            (["--affinity-temperature", "0"], "affinity_temperature is 0"),
            (["--rms-norm-eps", "-1"], "allowed are numbers from 0"),
            (["--dtype", "int8"], "invalid choice"),
            (["--key-map", "nowhere.json"], "no key map at nowhere.json"),
            (["-q", "--q-bits", "7", "--q-group-size", "32"], "7"),
            (["-q", "--q-group-size", "48"], "48"),
            (["-q", "--q-group-size", "128"], "nothing can be quantised"),
            (["--quant-predicate", "mixed_4_6", "--q-mode", "mxfp4"], "affine"),
        ],
        ids=lambda x: " ".join(x) if isinstance(x, list) else "",
    )
    def test_options(self, source, convert, options, said):
        refused(convert(source(), "--no-parity", *options), said)


class TestKeyMaps:
    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ([], "holds a list"),
            ({"renames": []}, "'renames'; allowed are ignore"),
            ({"rename": {}}, "rename in map is a dict"),
            ({"rename": [["a"]]}, "rename 1 in map"),
            ({"rename": [["a", "b"], ["(", "b"]]}, "rename 2 in map"),
            ({"rename": [["a", r"\1"]]}, r"'\\1' does not fit 'a'"),
            ({"rename": [["a", 3]]}, "3; allowed is a name"),
            ({"ignore": ["*"]}, "ignore 1 in map"),
            ({"ignore": "a"}, "ignore in map is a str"),
            ({"transpose": [1]}, "transpose 1 in map is 1"),
            ({"split": [{"match": "a"}]}, "split 1 in map has no into"),
            ({"split": [{"match": "a", "into": ["b"]}]}, "allowed is a list of names"),
            ({"split": [{"match": "a", "into": ["b", "c"], "sizes": [1]}]}, "2 numbers of rows"),
            ({"split": [{"match": "a", "into": ["b", "c"], "sizes": [1, -1]}]}, "2 numbers"),
            ({"split": [{"match": "a", "into": ["b", "c"], "rows": 1}]}, "'rows'"),
            ({"concat": [{"match": "a", "into": "b"}]}, "allowed is a list of patterns"),
            ({"concat": [{"match": ["a", "b"]}]}, "concat 1 in map has no into"),
        ],
    )
    def test_content(self, content, said):
        with pytest.raises(ValueError) as error:
            key_map("map", content)
        assert said in str(error.value)

    @pytest.mark.parametrize("name", ["map.json", "map.toml"])
    def test_text(self, source, convert, tmp_path, name):
        path = tmp_path / name
        path.write_text("{ =")
        refused(convert(source(), "--key-map", path), name, "is not")

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (
                {"split": [{"match": "^norm.weight$", "into": ["a", "b"], "sizes": [1, 2]}]},
                "48 rows",
            ),
            ({"split": [{"match": "^norm.weight$", "into": ["a", "b"]}]}, "unknown sizes"),
            ({"rename": [["w_eta|w_mu", "rate"]]}, "both become blocks.0.memory.rate.weight"),
            (
                {"concat": [{"match": ["w_eta", "nobody"], "into": "rates"}]},
                "nothing matches 'nobody'",
            ),
            ({"concat": [{"match": ["w_in", "w_out"], "into": "both"}]}, "their columns differ"),
            ({}, "missing: model.embed_tokens.weight"),
            ({"rename": [["^blokcs", "model"]]}, "rename 1 of PATH: '^blokcs' matches no name"),
            ({"transpose": ["a", "^A"]}, "transpose 2 of PATH: '^A' matches no name"),
            ({"ignore": ["a", "^A"]}, "ignore 2 of PATH: '^A' matches no name"),
        ],
    )
    def test_what_does_not_fit(self, source, convert, tmp_path, content, said):
        path = tmp_path / "map.json"
        path.write_text(json.dumps(content))
        refused(convert(source(), *UNSEEN, "--key-map", path), said.replace("PATH", str(path)))


@pytest.mark.parametrize("kills", [4, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_run_leaves_nothing_that_loads_half(tmp_path, kills):
    """Killed at several moments: the folder is whole or is not there."""
    exported = tmp_path / "torch"
    assert cli.main(["export", "--torch-path", str(exported)]) == 0
    command = [sys.executable, "-m", "fm_mlx", "convert", "--hf-path", str(exported), "--no-parity"]
    start = time.monotonic()
    subprocess.run(
        [*command, "--mlx-path", str(tmp_path / "whole")], check=True, capture_output=True
    )
    took = time.monotonic() - start
    wanted = sorted(path.name for path in (tmp_path / "whole").iterdir())
    for i in range(kills):
        out = tmp_path / f"mlx{i}"
        process = subprocess.Popen([*command, "--mlx-path", str(out)], stdout=subprocess.DEVNULL)
        time.sleep(took * (0.5 + i / (2 * kills)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        left = [out] if out.exists() else list(tmp_path.glob(f".mlx{i}.*"))
        for folder in left:
            if (folder / "config.json").exists():
                assert sorted(path.name for path in folder.iterdir()) == wanted


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_memory_is_that_of_a_shard(trained, convert, tmp_path, kind):
    """Four shards of 4 MB are converted in 1.3 times one of them."""
    folder = tmp_path / "source"
    folder.mkdir()
    state = trained.state
    state["embedding.weight"] = torch.randn(20_000, 48)
    state["head.weight"] = torch.randn(20_000, 48)
    for i in range(2):
        block = f"blocks.{i}.mlp"
        wide = torch.randn(2, 20_000, 48)
        state |= {f"{block}.gate.weight": wide[0].clone(), f"{block}.up.weight": wide[1].clone()}
        state[f"{block}.down.weight"] = torch.randn(48, 20_000)
    names = list(state)
    largest = 0
    for i in range(4):
        path = folder / f"model-{i}.{kind}"
        shard = {name: state[name] for name in names[i::4]}
        (save_file if kind == "safetensors" else torch.save)(shard, path)
        largest = max(largest, path.stat().st_size)
    (folder / "config.json").write_text(json.dumps(trained.config()))
    before = mx.get_active_memory()
    mx.clear_cache()
    mx.reset_peak_memory()
    status, *_, out = convert(folder, "--no-parity")
    assert status == 0
    assert len(list(out.glob("model-*.safetensors"))) >= 3
    assert mx.get_peak_memory() - before < 1.3 * largest


def test_one_line_for_what_torch_says():
    """torch.load's own advice is several lines long."""
    buffer = io.BytesIO()
    torch.save(RunsCode(), buffer)
    with pytest.raises(pickle.UnpicklingError) as error:
        torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    assert str(error.value).count("\n") > 1
