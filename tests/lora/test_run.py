"""Runs: what is tuned, what is saved, and that a run can be taken up after anything."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest

import fm_mlx
from fm_mlx.lora import Diverged, Options, curves, evaluate, training_state, tune
from fm_mlx.lora.data import load_data
from fm_mlx.lora.run import tune_model

KINDS = {
    "lora": dict(),
    "dora": dict(fine_tune_type="dora"),
    "full": dict(fine_tune_type="full"),
    "memory": dict(fine_tune_type="memory", learning_rate=5e-2),
    "lora and router": dict(train_router=True),
    "one layer's memory": dict(fine_tune_type="memory", memory_layers=[1]),
    "last layer": dict(num_layers=1),
}


def train_losses(folder) -> list[float]:
    return [line["train_loss"] for line in curves.read_log(Path(folder)) if "train_loss" in line]


@pytest.mark.parametrize("kind", KINDS)
def test_loss_falls_and_the_adapter_is_the_model(kind, options, model):
    """What was trained, what fm_mlx loads, and what mlx-lm loads are one model."""
    chosen = options(**KINDS[kind], iters=12)
    tokens = mx.arange(40)[None] + 5
    before = model(tokens)
    data = load_data(chosen, fm_mlx.load(chosen.model)[1])
    result = tune_model(model, data["train"], data["valid"], chosen)
    assert result.after < result.before
    trained = model(tokens)
    assert not mx.allclose(trained, before, rtol=0, atol=1e-3)
    ours, _ = fm_mlx.load(chosen.model, adapter_path=chosen.adapter_path)
    assert mx.array_equal(ours(tokens), trained)
    if kind == "lora and router":
        with pytest.raises(ValueError, match=r"router.weight: not an adapter parameter"):
            mlx_lm.load(chosen.model, adapter_path=chosen.adapter_path)
    else:
        theirs, _ = mlx_lm.load(chosen.model, adapter_path=chosen.adapter_path)
        assert mx.array_equal(theirs(tokens), trained)
    assert evaluate(chosen) == pytest.approx(result.after, rel=0.2)


def test_what_is_tuned(options):
    saved, layers = {}, {}
    for kind, changes in KINDS.items():
        chosen = options(**changes, iters=1, adapter_path=options().adapter_path + kind)
        tune(chosen)
        names = mx.load(f"{chosen.adapter_path}/adapters.safetensors")
        layers[kind] = {name.split(".layers.")[1][0] for name in names}
        saved[kind] = {name.split(".", 3)[-1] if "layers" in name else name for name in names}
    linear = ("memory.in_proj", "memory.out_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    low_rank = {f"{name}.lora_{x}" for name in linear for x in "ab"}
    assert saved["lora"] == low_rank
    assert saved["lora and router"] == low_rank | {"memory.router.weight"}
    assert saved["dora"] == low_rank | {f"{name}.m" for name in linear}
    assert saved["memory"] == saved["one layer's memory"] == {"m"}
    only = {"one layer's memory": {"1"}, "last layer": {"1"}}
    assert layers == {kind: only.get(kind, {"0", "1"}) for kind in KINDS}
    norms = {"memory_norm.weight", "mlp_norm.weight"}
    assert saved["full"] == {f"{name}.weight" for name in linear} | norms


def test_memory_is_a_small_adapter_without_cost(options):
    chosen = options(fine_tune_type="memory", iters=2)
    tune(chosen)
    model, _ = fm_mlx.load(chosen.model, adapter_path=chosen.adapter_path)
    base, _ = fm_mlx.load(chosen.model)
    args = model.args
    numbers = args.num_hidden_layers * args.num_memory_states * args.memory_size
    assert Path(chosen.adapter_path, "adapters.safetensors").stat().st_size < 4 * numbers + 1000
    states = [m.make_cache()[0] for m in (model, base)]
    assert [len(cache.cache) for cache in states] == [1, 1]  # decoding sees arrays of one shape


RESUMED = {
    "stream": dict(),
    "bucket": dict(batching="bucket"),
    "pack, dropout": dict(
        batching="pack", lora_parameters={"rank": 2, "dropout": 0.3, "scale": 5.0}
    ),
    "accumulated": dict(grad_accumulation_steps=2, save_every=3),
    "schedule": dict(
        optimizer="adamw",
        lr_schedule={"name": "cosine_decay", "arguments": [1e-3, 12], "warmup": 3},
    ),
    "memory": dict(fine_tune_type="memory"),
}


@pytest.mark.parametrize("kind", RESUMED)
def test_resumed_is_unbroken(kind, options, tmp_path):
    """The same losses to the last bit, and the same adapter."""
    changes = RESUMED[kind]
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    tune(options(**changes, adapter_path=whole, iters=12))
    tune(options(**changes, adapter_path=parts, iters=4))
    tune(options(**changes, adapter_path=parts, iters=12, resume=True))
    assert train_losses(parts) == train_losses(whole)
    assert len(train_losses(whole)) == 12
    a, b = (mx.load(f"{folder}/adapters.safetensors") for folder in (whole, parts))
    assert a.keys() == b.keys() and all(mx.array_equal(a[name], b[name]) for name in a)


def test_resume_wants_the_run_it_was(options, tmp_path):
    chosen = options(iters=4)
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        tune(options(resume=True))
    tune(chosen)
    with pytest.raises(ValueError, match="--resume goes on with its run"):
        tune(chosen)
    with pytest.raises(ValueError, match=r"has seed 0, not 3"):
        tune(options(resume=True, seed=3))
    text = Path(chosen.data).read_text()
    Path(chosen.data).write_text(text.replace("river", "stone"))
    with pytest.raises(ValueError, match=r"has examples of digest \d+, not \d+"):
        tune(options(resume=True, iters=8))
    Path(chosen.data).write_text(text)
    with pytest.raises(ValueError, match="has 4 steps already; iters is 4"):
        tune(options(resume=True, iters=4))
    path = Path(chosen.adapter_path, "checkpoint.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is not a checkpoint"):
        tune(options(resume=True))


def test_divergence_keeps_the_last_save(options):
    """An optimizer that goes wrong after the first save."""
    schedule = {"name": "step_decay", "arguments": [1e-3, 1e12, 5]}
    chosen = options(iters=12, lr_schedule=schedule)
    with pytest.raises(Diverged, match=r"step \d+ made the weights .* the save of step 4 is kept"):
        tune(chosen)
    model, _ = fm_mlx.load(chosen.model, adapter_path=chosen.adapter_path)
    assert mx.isfinite(model(mx.arange(40)[None])).all()
    assert training_state.read(Path(chosen.adapter_path)).step == 4


@pytest.mark.parametrize("batching", ["bucket", "pack", "stream"])
@pytest.mark.parametrize("kind", ["lora", "memory"])
def test_gradient_checkpoints_change_nothing_but_memory(kind, batching, options, tmp_path):
    plain, less = str(tmp_path / "plain"), str(tmp_path / "less")
    changes = KINDS[kind] | dict(batching=batching)
    tune(options(adapter_path=plain, **changes))
    tune(options(adapter_path=less, grad_checkpoint=True, **changes))
    assert train_losses(less) == pytest.approx(train_losses(plain), rel=1e-6)


def test_accumulated_gradients_are_those_of_a_larger_batch(options, tmp_path):
    small, large = str(tmp_path / "small"), str(tmp_path / "large")
    one = options(batching="bucket", max_seq_length=32)
    model, tokenizer = fm_mlx.load(one.model)
    train = load_data(one, tokenizer)["train"][:8]  # windows of one length
    changes = dict(batching="bucket", optimizer="sgd", learning_rate=0.1)
    tune_model(model, train, [], options(
        adapter_path=small, batch_size=4, iters=2, grad_accumulation_steps=2, **changes
    ))  # fmt: skip
    tune_model(fm_mlx.load(one.model)[0], train, [], options(
        adapter_path=large, batch_size=8, iters=1, **changes
    ))  # fmt: skip
    a, b = (mx.load(f"{folder}/adapters.safetensors") for folder in (small, large))
    for name in a:
        assert mx.allclose(a[name], b[name], rtol=0, atol=1e-6), name


def test_picture_and_log(options):
    result = tune(options())
    assert curves.draw(result.adapter_path)
    assert (result.adapter_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    lines = curves.read_log(result.adapter_path)
    assert [x["iteration"] for x in lines if "train_loss" in x] == list(range(1, 9))
    assert lines[0] == {"iteration": 0, "val_loss": result.before, "val_time": lines[0]["val_time"]}
    assert lines[-1] == {
        "iteration": 8,
        "val_loss": result.after,
        "val_time": lines[-1]["val_time"],
    }


def argv_of(options: Options, *more: str) -> list[str]:
    """The command of a run, in a process of its own."""
    argv = ["-m", "fm_mlx", "lora", *more]
    for name in (
        "model", "data", "adapter_path", "iters", "batch_size", "batching", "max_seq_length",
        "val_batches", "steps_per_report", "save_every", "optimizer", "learning_rate",
    ):  # fmt: skip
        argv += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    return argv


def started(options: Options, *more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *argv_of(options, *more)], env=os.environ | {"MLX_DISABLE_COMPILE": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finished(run: subprocess.Popen) -> None:
    output = run.communicate(timeout=300)[0]
    assert run.returncode == 0, output


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_anywhere(options, tmp_path, kills):
    """Kills at random moments lose at most the steps since the last save, never a save.

    The losses are then those of a run that was never killed.
    """
    iters, every = 30 * kills, 3
    whole = options(adapter_path=str(tmp_path / "whole"), iters=iters, save_every=every)
    unbroken = started(whole)
    chosen = options(iters=iters, save_every=every)
    folder = Path(chosen.adapter_path)
    rng = random.Random(0)
    saved, checkpoint = 0, folder / "checkpoint.safetensors"
    for _ in range(kills):
        run = started(chosen, *(["--resume"] if checkpoint.is_file() else []))
        some = saved + rng.randint(0, 2 * every)
        deadline = time.monotonic() + 60
        while run.poll() is None and _steps(folder) <= some and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        run.send_signal(signal.SIGKILL)
        output = run.communicate()[0]
        assert run.returncode == -signal.SIGKILL, output
        if checkpoint.is_file():
            now = training_state.read(folder)
            for file in folder.glob("[!.]*.safetensors"):
                mx.load(str(file))
            assert now.step >= saved and _steps(folder) - now.step <= every + 1
            saved = now.step
    assert saved > 0
    finished(started(chosen, "--resume"))
    assert not list(folder.glob(".*"))
    finished(unbroken)
    assert train_losses(folder) == train_losses(whole.adapter_path)


def _steps(folder: Path) -> int:
    """Steps that a run has reported."""
    return max((line["iteration"] for line in curves.read_log(folder)), default=0)


def test_compiled_steps_are_the_others(options, tmp_path):
    """As users run it: the step is compiled, with the memories that it carries."""
    one, two = (options(adapter_path=str(tmp_path / name)) for name in ("one", "two"))
    tune(one)
    mx.enable_compile()
    tune(two)
    assert train_losses(two.adapter_path) == pytest.approx(train_losses(one.adapter_path), rel=1e-4)


@pytest.mark.parametrize("batching", ["bucket", "pack", "stream"])
def test_two_processes_are_one_with_the_whole_batch(batching, options, tmp_path):
    """MLX's own distributed engine over the loopback, with rows of unlike lengths.

    By SGD: Adam makes whole steps of gradients that are nothing but rounding.
    """
    data = tmp_path / "data"
    data.mkdir()
    rng = random.Random(0)
    words = Path(options().data).read_text().split()
    for split in ("train", "valid"):
        lines = [{"text": " ".join(rng.choices(words, k=rng.randint(2, 30)))} for _ in range(40)]
        (data / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    changes = dict(
        data=str(data),
        batch_size=4,
        batching=batching,
        iters=6,
        optimizer="sgd",
        learning_rate=1e-3,
    )
    one, two = (options(adapter_path=str(tmp_path / name), **changes) for name in ("one", "two"))
    tune(one)
    launch = Path(sys.executable).with_name("mlx.launch")
    done = subprocess.run(
        [launch, "-n", "2", "--backend", "ring", "--env", "MLX_DISABLE_COMPILE=1",
         "--python", sys.executable, *argv_of(two)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("held-out loss: ") == 1
    one, two = Path(one.adapter_path), Path(two.adapter_path)
    assert train_losses(two) == pytest.approx(train_losses(one), rel=1e-5)
    logs = [[x["val_loss"] for x in curves.read_log(f) if "val_loss" in x] for f in (one, two)]
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)
    kept = [training_state.read(folder) for folder in (one, two)]
    assert kept[0].trained_tokens == kept[1].trained_tokens
    for name, value in kept[0].arrays.items():
        if name.startswith("carried"):
            assert mx.allclose(kept[1].arrays[name], value, rtol=0, atol=1e-4)
