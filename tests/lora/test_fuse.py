"""Adapter, fused model and mlx-lm's own commands write the same text."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import mlx.core as mx
import pytest
from mlx_lm import generate
from mlx_lm.convert import convert
from mlx_lm.utils import load as mlx_lm_load
from test_run import KINDS

import fm_mlx
from fm_mlx.commands import cli
from fm_mlx.convert.writing import bundle_code
from fm_mlx.lora import tune

PROMPT = "the river writes"


@pytest.fixture(scope="module")
def runnable(checkpoint, tmp_path_factory):
    """The checkpoint with the file by which mlx-lm's own commands run it."""
    folder = tmp_path_factory.mktemp("runnable") / "model"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | bundle_code(folder)))
    return folder


def text(model, tokenizer) -> str:
    return generate(model, tokenizer, PROMPT, max_tokens=24)


def mlx_lm(command: str, *argv) -> str:
    """A stock command of mlx-lm in a process that knows nothing of fm_mlx."""
    done = subprocess.run(
        [sys.executable, "-m", "mlx_lm", command, "--trust-remote-code", *map(str, argv)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_same_text(kind, runnable, options, tmp_path):
    chosen = options(**KINDS[kind], iters=6, model=str(runnable), trust_remote_code=True)
    tune(chosen)
    adapter, fused = chosen.adapter_path, tmp_path / "fused"
    config = json.loads((runnable / "config.json").read_text())
    plain = runnable.parent / f"plain {kind}"
    shutil.copytree(runnable, plain)
    (plain / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if key != "model_file"})
    )
    wanted = text(*fm_mlx.load(plain, adapter_path=adapter))
    assert wanted != text(*fm_mlx.load(plain))
    argv = ["fuse", "--model", plain, "--adapter-path", adapter, "--save-path", fused]
    assert cli.main([str(word) for word in argv]) == 0
    assert text(*fm_mlx.load(fused)) == wanted
    assert text(*mlx_lm_load(str(fused))) == wanted
    if kind == "memory":
        options = ("--prompt", PROMPT, "--max-tokens", 24, "--temp", 0)
        out = mlx_lm("generate", "--model", runnable, "--adapter-path", adapter, *options)
        assert out.split("==========")[1].strip() == wanted.strip()
        theirs = tmp_path / "fused by mlx-lm"
        mlx_lm("fuse", "--model", runnable, "--adapter-path", adapter, "--save-path", theirs)
        out = mlx_lm("generate", "--model", theirs, *options)
        assert out.split("==========")[1].strip() == wanted.strip()


@pytest.mark.parametrize("kind", ["lora", "dora", "memory"])
def test_quantised_bases(kind, checkpoint, options, tmp_path):
    """QLoRA: the base stays as it is; fused to the base's bits, or to floating point."""
    base = tmp_path / "base"
    convert(str(checkpoint), str(base), quantize=True, q_bits=8, q_group_size=32)
    chosen = options(**KINDS[kind], iters=10, model=str(base))
    result = tune(chosen)
    assert result.after < result.before
    tuned, _ = fm_mlx.load(base, adapter_path=chosen.adapter_path)
    tokens = mx.arange(40)[None] + 5
    kinds = {}
    for name, more in {"quantised": (), "float": ("--dequantize",)}.items():
        path = tmp_path / name
        argv = ["fuse", "--model", base, "--adapter-path", chosen.adapter_path]
        assert cli.main([str(word) for word in (*argv, "--save-path", path, *more)]) == 0
        fused, _ = fm_mlx.load(path)
        kinds[name] = "quantization" in json.loads((path / "config.json").read_text())
        error = mx.abs(fused(tokens) - tuned(tokens)).mean() / mx.abs(tuned(tokens)).mean()
        assert error < (1e-4 if name == "float" else 0.05), name
        router = fused.layers[0].memory.router.weight
        assert router.dtype == mx.float32
    assert kinds == {"quantised": True, "float": False}


def test_a_fused_memory_goes_where_the_model_goes(checkpoint, options, tmp_path, capsys):
    """Through mlx-lm's converter in float32; not to PyTorch, whose reference begins empty."""
    chosen = options(**KINDS["memory"], iters=2)
    tune(chosen)
    fused, small = tmp_path / "fused", tmp_path / "small"
    argv = ["fuse", "--model", checkpoint, "--adapter-path", chosen.adapter_path]
    assert cli.main([*map(str, argv), "--save-path", str(fused)]) == 0
    convert(str(fused), str(small), quantize=True, q_bits=4, q_group_size=32, dtype="bfloat16")
    states = [fm_mlx.load(path)[0].initial_memory.states() for path in (fused, small)]
    for whole, quantised in zip(*states, strict=True):
        assert quantised.dtype == mx.float32 and mx.array_equal(whole, quantised)
        assert mx.abs(whole).max() > 0
    capsys.readouterr()
    argv = ["export", "--model", str(fused), "--torch-path", str(tmp_path / "torch")]
    assert cli.main(argv) == 2
    assert "begins with a learned memory" in capsys.readouterr().err
    assert not (tmp_path / "torch").exists()


def test_a_quantised_model_is_not_tuned_in_full(checkpoint, options, tmp_path):
    base = tmp_path / "base"
    convert(str(checkpoint), str(base), quantize=True, q_bits=8, q_group_size=32)
    with pytest.raises(ValueError, match="cannot be tuned in full"):
        tune(options(model=str(base), fine_tune_type="full"))


def test_fusing_writes_whole_folders_or_none(checkpoint, options, tmp_path, capsys):
    chosen = options(iters=1)
    tune(chosen)
    there = tmp_path / "there"
    there.mkdir()
    for argv in (
        ["--adapter-path", tmp_path / "nowhere", "--save-path", tmp_path / "out"],
        ["--adapter-path", chosen.adapter_path, "--save-path", there],
    ):
        capsys.readouterr()
        assert cli.main(["fuse", "--model", str(checkpoint), *map(str, argv)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists() and not list(there.iterdir())
