"""A run of fine-tuning: mlx-lm's trainer, with our batches, and saves between its steps."""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
from mlx_lm.tuner.callbacks import TrainingCallback, get_reporting_callbacks
from mlx_lm.tuner.trainer import TrainingArgs
from mlx_lm.tuner.trainer import evaluate as evaluate_batches
from mlx_lm.tuner.trainer import train as train_steps
from mlx_lm.tuner.utils import build_schedule
from mlx_lm.utils import get_total_parameters

from fm_mlx.files import write_json
from fm_mlx.loading import load
from fm_mlx.lora import checkpoint
from fm_mlx.lora.checkpoint import Checkpoint
from fm_mlx.lora.curves import Log
from fm_mlx.lora.data import Example, load_data
from fm_mlx.lora.feeder import Feeder
from fm_mlx.lora.loss import carried, forget_carried, next_token_loss
from fm_mlx.lora.options import Options
from fm_mlx.lora.tuned import adapter_config, prepare, trainable
from fm_mlx.model import Block, Model

_OPTIMIZERS = {
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "muon": optim.Muon,
    "sgd": optim.SGD,
    "adafactor": optim.Adafactor,
}


class Diverged(ArithmeticError):
    """The weights are no longer numbers; the text says what is kept."""


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        adapter_path: folder of the adapter.
        tuned, parameters: how many numbers were tuned, and the model has.
        before, after: held-out loss in nats per token, where this process began and at the
            end; None without held-out examples.
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
    return held_out_loss(model, examples, options, options.test_batches)


def tune_model(
    model: Model, train: Sequence[Example], valid: Sequence[Example], options: Options
) -> Result:
    """`tune` a loaded model, which is left with its adapter, on examples."""
    _check_examples(train, "train", options)
    folder = Path(options.adapter_path)
    if not options.resume and (folder / checkpoint.ADAPTERS).exists():
        raise ValueError(
            f"{folder} holds an adapter: --resume goes on with its run, another --adapter-path "
            "keeps it"
        )
    before = checkpoint.read(folder) if options.resume else None
    parameters = get_total_parameters(model)
    mx.random.seed(options.seed)
    prepare(model, options)
    if options.resume_adapter_file is not None:
        _load_weights(model, Path(options.resume_adapter_file))
    _warn_of_cuts(train, options)
    try:
        losses = Run(model, train, options, before).train(valid)
    finally:
        forget_carried(model)
        model.eval()
    tuned = sum(value.size for value in trainable(model).values())
    return Result(folder, tuned, parameters, *losses)


def held_out_loss(
    model: Model, examples: Sequence[Example], options: Options, batches: int
) -> float:
    """Mean loss over examples, in nats per token; at most so many batches, -1: all."""
    feeder = Feeder(model, options.batching)
    try:
        return evaluate_batches(
            model, examples, options.batch_size, batches, options.max_seq_length,
            next_token_loss, feeder,
        )  # fmt: skip
    finally:
        forget_carried(model)


class Run(Feeder):
    """The steps of a run, from its beginning or from a checkpoint."""

    def __init__(
        self,
        model: Model,
        examples: Sequence[Example],
        options: Options,
        before: Checkpoint | None,
    ):
        super().__init__(model, options.batching, options.seed, before.step if before else 0)
        self._examples = examples
        self._options = options
        self._folder = Path(options.adapter_path)
        self._world = mx.distributed.init()
        self._check()
        digest = zlib.crc32(b"".join(example.tokens.tobytes() for example in examples))
        self._course = json.loads(json.dumps(options.course | {"examples of digest": digest}))
        self._optimizer = _optimizer(options)
        self._tokens_before = before.trained_tokens if before else 0
        self._tokens, self._step_tokens = 0, 0
        self._saved = self.done
        # an update is saved when it has all of its gradients
        accumulated = options.grad_accumulation_steps
        self._save_every = -(-options.save_every // accumulated) * accumulated
        if before is not None:
            self._check_course(before)
            own = slice(self._world.rank(), None, self._world.size())
            before.restore(model, self._optimizer, own)

    def _check(self) -> None:
        options, size = self._options, self._world.size()
        if options.batch_size % size:
            raise ValueError(
                f"batch_size is {options.batch_size}; allowed are multiples of the {size} processes"
            )
        if options.iters % options.grad_accumulation_steps:
            raise ValueError(
                f"iters is {options.iters}; allowed are multiples of grad_accumulation_steps, "
                f"{options.grad_accumulation_steps}"
            )
        if self.done >= options.iters:
            raise ValueError(
                f"the run in {self._folder} has {self.done} steps already; iters is {options.iters}"
            )

    def _check_course(self, before: Checkpoint) -> None:
        for name, value in self._course.items():
            if before.course.get(name) != value:
                raise ValueError(
                    f"the run in {self._folder} has {name} {before.course.get(name)!r}, "
                    f"not {value!r}: resume it with the options it was begun with"
                )

    def train(self, valid: Sequence[Example]) -> tuple[float | None, float | None]:
        """Take the steps that are left; the held-out loss before and after."""
        options = self._options
        first = self._world.rank() == 0
        if first:
            self._folder.mkdir(parents=True, exist_ok=True)
            checkpoint.sweep(self._folder)
            write_json(self._folder / "adapter_config.json", adapter_config(options))
        inner = _reporting(options) if first else None
        log = Log(self._folder if first else None, self.done, self._tokens_before, inner)
        left = options.iters - self.done
        block_call = Block.__call__
        try:
            with tempfile.TemporaryDirectory() as scratch:
                arguments = TrainingArgs(
                    batch_size=options.batch_size,
                    iters=left,
                    val_batches=options.val_batches,
                    steps_per_report=options.steps_per_report,
                    steps_per_eval=options.steps_per_eval,
                    # the saves are ours: whole or not at all, with what it takes to resume
                    steps_per_save=left + 1,
                    adapter_file=f"{scratch}/{checkpoint.ADAPTERS}",
                    max_seq_length=options.max_seq_length,
                    grad_checkpoint=options.grad_checkpoint,
                    grad_accumulation_steps=options.grad_accumulation_steps,
                    clear_cache_threshold=options.clear_cache_threshold,
                )
                train_steps(
                    self.model, self._optimizer, self._examples, list(valid) or None, arguments,
                    loss=next_token_loss, iterate_batches=self, training_callback=log,
                )  # fmt: skip
        finally:
            Block.__call__ = block_call  # mlx-lm's grad_checkpoint changes the class
        self.done += 1
        self.after_step()
        if not valid:
            return None, None
        after = held_out_loss(self.model, valid, options, options.val_batches)
        log.last(self.done, after)
        return log.first_val_loss, after

    def before_step(self, tokens: int) -> None:
        self._step_tokens = tokens

    def after_step(self) -> None:
        """Save if it is time.

        Raises:
            Diverged: if a weight is not finite.
        """
        self._tokens += self._step_tokens
        finite = [mx.isfinite(value).all() for value in trainable(self.model).values()]
        if not mx.stack(finite).all().item():
            kept = f"the save of step {self._saved} is kept" if self._saved else "nothing is saved"
            raise Diverged(
                f"step {self.done} made the weights infinite or NaN; {kept} in {self._folder}; "
                f"a learning rate below {self._options.learning_rate:g} may help"
            )
        if self.done % self._save_every == 0 or self.done == self._options.iters:
            self._save()

    def _save(self) -> None:
        tokens = mx.distributed.all_sum(mx.array(self._tokens), stream=mx.cpu).item()
        states = self._all_carried() if self.carries else []
        if self._world.rank() == 0:
            arrays = checkpoint.snapshot(self.model, self._optimizer, states)
            now = Checkpoint(self.done, self._tokens_before + tokens, self._course, arrays)
            checkpoint.save(self._folder, now)
        self._saved = self.done

    def _all_carried(self) -> list[mx.array]:
        """The memories of the rows of all processes, which take turns in a batch."""
        size = self._world.size()
        own = carried(self.model, self._options.batch_size // size)
        if size == 1:
            return own
        gathered = [mx.distributed.all_gather(state[:, None], stream=mx.cpu) for state in own]
        mx.eval(gathered)  # in all processes: each waits for the others
        return [x.reshape(size, -1, *x.shape[2:]).swapaxes(0, 1).flatten(0, 1) for x in gathered]


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
            config=adapter_config(options),
        )
    except ImportError as error:
        raise ValueError(f"report_to {options.report_to}: {error}") from error
