"""A run of fine-tuning, from options to an adapter."""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.optimizers as optim
from mlx_lm.tuner.callbacks import TrainingCallback, get_reporting_callbacks
from mlx_lm.tuner.utils import build_schedule
from mlx_lm.utils import get_total_parameters

from fm_mlx.loading import load
from fm_mlx.lora import training_state
from fm_mlx.lora.curves import Log, Silence
from fm_mlx.lora.data import Example, load_data
from fm_mlx.lora.loop import Loop, make_batches
from fm_mlx.lora.loop import evaluate as evaluate_model
from fm_mlx.lora.options import Options
from fm_mlx.lora.training_state import TrainingState
from fm_mlx.lora.tuned import adapter_config, prepare, trainable
from fm_mlx.model import Model
from fm_mlx.support.files import write_json

_OPTIMIZERS = {
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "muon": optim.Muon,
    "sgd": optim.SGD,
    "adafactor": optim.Adafactor,
}


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        adapter_path: The folder of the adapter.
        tuned: How many numbers were tuned.
        parameters: How many numbers the model has.
        before: The held-out loss in nats per token where this process began; None without
            held-out examples.
        after: The held-out loss at the end.
    """

    adapter_path: Path
    tuned: int
    parameters: int
    before: float | None
    after: float | None


def tune(options: Options) -> Result:
    """Fine-tune a model as the options say, and write its adapter.

    Raises:
        FileNotFoundError, ValueError: model, data or options are not what they should be.
        Diverged: the weights became infinite; the last save is kept.
    """
    model, tokenizer = load(options.model, trust_remote_code=options.trust_remote_code)
    data = load_data(options, tokenizer, ("train", "valid"))
    return tune_model(model, data["train"], data["valid"], options)


def evaluate(options: Options) -> float:
    """The loss of model and adapter on the test examples, in nats per token.

    Raises:
        FileNotFoundError, ValueError: as `tune`; or there is no adapter or no test.
    """
    model, tokenizer = load(
        options.model,
        adapter_path=options.adapter_path or None,
        trust_remote_code=options.trust_remote_code,
    )
    examples = load_data(options, tokenizer, ("test",))["test"]
    _check_examples(examples, "test", options)
    return evaluate_model(model, examples, options, options.test_batches)


def tune_model(
    model: Model, train: Sequence[Example], valid: Sequence[Example], options: Options
) -> Result:
    """`tune` a loaded model, which is left with its adapter, on examples."""
    _check_examples(train, "train", options)
    _check_steps(options)
    folder = Path(options.adapter_path)
    if not options.resume and (folder / training_state.ADAPTERS).exists():
        raise ValueError(
            f"{folder} holds an adapter: --resume goes on with its run, another --adapter-path "
            "keeps it"
        )
    course = _course(train, options)
    before = training_state.read(folder) if options.resume else None
    if before is not None:
        _check_course(before, course, options)
    parameters = get_total_parameters(model)
    mx.random.seed(options.seed)
    prepare(model, options)
    if options.resume_adapter_file is not None:
        _load_weights(model, Path(options.resume_adapter_file))
    _warn_of_cuts(train, options)
    batches = make_batches(train, options)
    log = _log(options, before.step if before else 0)
    model.model.gradient_checkpointing = options.grad_checkpoint
    try:
        loop = Loop(model, _optimizer(options), batches, options, course, log, before)
        losses = loop.run(valid)
    finally:
        log.close()
        model.model.gradient_checkpointing = False
        model.eval()
    tuned = sum(value.size for value in trainable(model).values())
    return Result(folder, tuned, parameters, *losses)


def _check_steps(options: Options) -> None:
    size = mx.distributed.init().size()
    if options.batch_size % size:
        raise ValueError(
            f"batch_size is {options.batch_size}; allowed are multiples of the {size} processes"
        )
    if options.iters % options.grad_accumulation_steps:
        raise ValueError(
            f"iters is {options.iters}; allowed are multiples of grad_accumulation_steps, "
            f"{options.grad_accumulation_steps}"
        )


def _course(examples: Sequence[Example], options: Options) -> dict[str, Any]:
    """All that the losses of a run depend on, as it comes back from JSON."""
    digest = zlib.crc32(b"".join(example.tokens.tobytes() for example in examples))
    return json.loads(json.dumps(options.course | {"examples of digest": digest}))


def _check_course(before: TrainingState, course: dict[str, Any], options: Options) -> None:
    """Raise ValueError unless a run can be gone on with."""
    folder = options.adapter_path
    if before.step >= options.iters:
        raise ValueError(
            f"the run in {folder} has {before.step} steps already; iters is {options.iters}"
        )
    for name, value in course.items():
        if before.course.get(name) != value:
            raise ValueError(
                f"the run in {folder} has {name} {before.course.get(name)!r}, "
                f"not {value!r}: resume it with the options it was begun with"
            )


def _log(options: Options, done: int) -> Log:
    """The log of a run, whose folder is made ready; that of one process of many is silent."""
    if mx.distributed.init().rank() > 0:
        return Silence()
    folder = Path(options.adapter_path)
    folder.mkdir(parents=True, exist_ok=True)
    training_state.sweep(folder)
    write_json(folder / "adapter_config.json", adapter_config(options))
    return Log(folder, done, options.iters, _reporting(options))


def _check_examples(examples: Sequence[Example], split: str, options: Options) -> None:
    if not any(len(example.tokens) > 1 for example in examples):
        raise ValueError(f"no examples to {split} on in {options.data or options.hf_dataset}")


def _warn_of_cuts(examples: Sequence[Example], options: Options) -> None:
    long = sum(len(example.tokens) - 1 > options.max_seq_length for example in examples)
    if long and options.batching != "stream" and mx.distributed.init().rank() == 0:
        print(
            f"{long} of {len(examples)} examples have more than {options.max_seq_length} tokens "
            "and are cut there; --batching stream reads them whole",
            file=sys.stderr,
        )


def _optimizer(options: Options) -> optim.Optimizer:
    rate = build_schedule(options.lr_schedule) if options.lr_schedule else options.learning_rate
    more = options.optimizer_config.get(options.optimizer, {})
    try:
        return _OPTIMIZERS[options.optimizer](learning_rate=rate, **more)
    except TypeError as error:
        raise ValueError(f"optimizer_config of {options.optimizer}: {error}") from error


def _load_weights(model: Model, path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"no adapter to begin with at {path}: no such file")
    try:
        model.load_weights(str(path), strict=False)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is no adapter of this model: {error}") from error


def _reporting(options: Options) -> TrainingCallback | None:
    try:
        return get_reporting_callbacks(
            options.report_to,
            project_name=options.project_name,
            log_dir=options.adapter_path,
            config=cast(Any, adapter_config(options)),
        )
    except ImportError as error:
        raise ValueError(f"report_to {options.report_to}: {error}") from error
