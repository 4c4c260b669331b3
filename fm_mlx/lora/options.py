"""What a run of fine-tuning is told: mlx-lm's options, and those that recurrent models need."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import yaml
from mlx_lm.lora import CONFIG_DEFAULTS, yaml_loader

from fm_mlx.initial_memory import PREFIX as INITIAL_MEMORY

FINE_TUNE_TYPES = ("lora", "dora", "full", "memory")
BATCHING = ("bucket", "pack", "stream")
OPTIMIZERS = tuple(CONFIG_DEFAULTS["optimizer_config"])

# W_i and W_o of the memory, and the SwiGLU; not the router
LINEAR_LAYERS = (
    "memory.in_proj",
    "memory.out_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)

# Chosen on the packaged model (docs/fine-tuning.md): the numbers of a memory's rows are
# larger than those of weights, and move further.
LEARNING_RATES = {"lora": 2e-4, "dora": 2e-4, "full": 3e-4, "memory": 1e-1}


@dataclass
class Options:
    """Options of ``fm-mlx lora``, by mlx-lm's names where it has them.

    Attributes:
        data: A folder with ``train.jsonl``, ``valid.jsonl``, ``test.jsonl``; a text file; or a
            Hugging Face data set.
        model: A folder or a Hugging Face repository; None is the packaged model.
        fine_tune_type: What is tuned: ``lora``, ``dora``, ``full``, or ``memory``, the initial
            state of every layer.
        num_layers: How many of the last layers are tuned; -1 for all.
        train_router: Whether W_alpha, w_eta and w_mu are tuned too, as whole matrices.
        memory_layers: With ``memory``, the layers to tune instead of the last ``num_layers``.
        lora_parameters: Rank, scale, dropout, and the keys of the layers in a block.
        batching: How examples become rows. ``bucket``: examples of like length side by side;
            ``pack``: several in a row, with the memory reset between them; ``stream``: whole
            documents in pieces of ``max_seq_length``, with the memory carried. None chooses stream
            for a text file (but not to tune how memories begin), and bucket for the rest.
        max_seq_length: T, the most tokens that a row reads at once.
        batch_size: How many rows a step has, in all processes together.
        iters: How many steps the run has.
        learning_rate: The learning rate; None chooses one that suits the type.
        lr_schedule: A schedule of mlx-lm's: ``{name, arguments, warmup}``.
        optimizer: The name of an optimizer of MLX.
        optimizer_config: What an optimizer is made with, by the optimizer's name.
        grad_accumulation_steps: How many steps add up their gradients for one update.
        grad_checkpoint: Whether the blocks are computed anew in the backward pass, for less memory.
        clear_cache_threshold: How many bytes of freed memory MLX may keep between steps.
        mask_prompt: Whether only completions count.
        seed: The seed of weights, dropout and order.
        val_batches: How many batches an evaluation looks at; -1 for all.
        test_batches: How many batches the test looks at; -1 for all.
        steps_per_report: How many steps lie between two reports.
        steps_per_eval: How many steps lie between two evaluations.
        save_every: How many steps lie between two saves.
        adapter_path: The folder to write.
        resume: Whether the run in ``adapter_path`` goes on from its last save.
        resume_adapter_file: An adapter whose weights the run starts with, without its run.
        report_to: Who is told of the losses by mlx-lm: wandb or swanlab.
        project_name: Under which name they are told.
        hf_dataset: A Hugging Face data set, by mlx-lm's options.
        prompt_feature: The name of its column of prompts.
        completion_feature: The name of its column of completions.
        text_feature: The name of its column of texts.
        chat_feature: The name of its column of messages.
        trust_remote_code: Whether a checkpoint's own code may run.
    """

    data: str | None = None
    model: str | None = None
    fine_tune_type: str = "lora"
    num_layers: int = -1
    train_router: bool = False
    memory_layers: list[int] | None = None
    lora_parameters: dict[str, Any] = field(default_factory=dict)
    batching: str = cast(str, None)  # until __post_init__ chooses
    max_seq_length: int = 2048
    batch_size: int = 4
    iters: int = 1000
    learning_rate: float = cast(float, None)  # until __post_init__ chooses
    lr_schedule: dict[str, Any] | None = None
    optimizer: str = "adam"
    optimizer_config: dict[str, dict[str, Any]] = field(default_factory=dict)
    grad_accumulation_steps: int = 1
    grad_checkpoint: bool = False
    clear_cache_threshold: int = 0
    mask_prompt: bool = False
    seed: int = 0
    val_batches: int = 25
    test_batches: int = 500
    steps_per_report: int = 10
    steps_per_eval: int = 200
    save_every: int = 100
    adapter_path: str = "adapters"
    resume: bool = False
    resume_adapter_file: str | None = None
    report_to: str | None = None
    project_name: str | None = None
    hf_dataset: dict[str, Any] | list[dict[str, Any]] | None = None
    prompt_feature: str = "prompt"
    completion_feature: str = "completion"
    text_feature: str = "text"
    chat_feature: str = "messages"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError: names the option, its value and what is allowed."""
        self._one_of("fine_tune_type", FINE_TUNE_TYPES)
        self._one_of("optimizer", OPTIMIZERS)
        if self.batching is None:
            streams = self.is_text_file and self.fine_tune_type != "memory"
            self.batching = "stream" if streams else "bucket"
        self._one_of("batching", BATCHING)
        for name in (
            "max_seq_length", "batch_size", "iters", "grad_accumulation_steps",
            "steps_per_report", "steps_per_eval", "save_every",
        ):  # fmt: skip
            self._whole(name, 1)
        for name in ("num_layers", "val_batches", "test_batches"):
            self._whole(name, -1)
        for name in ("seed", "clear_cache_threshold"):
            self._whole(name, 0)
        if self.data is None and self.hf_dataset is None:
            raise ValueError("no data: give --data a folder, a text file or a Hugging Face id")
        if self.memory_layers is not None and self.fine_tune_type != "memory":
            raise ValueError("memory_layers goes with fine_tune_type memory")
        if self.train_router and self.fine_tune_type == "memory":
            raise ValueError("train_router goes with fine_tune_type lora, dora and full")
        if self.learning_rate is None:
            self.learning_rate = LEARNING_RATES[self.fine_tune_type]
        self.lora_parameters = self._lora_parameters()

    def _lora_parameters(self) -> dict[str, Any]:
        keys = [INITIAL_MEMORY] if self.fine_tune_type == "memory" else list(LINEAR_LAYERS)
        given = self.lora_parameters or {}
        if "alpha" in given:
            raise ValueError("lora_parameters has alpha; mlx-lm's adapters have scale instead")
        return CONFIG_DEFAULTS["lora_parameters"] | {"keys": keys} | given

    def _one_of(self, name: str, allowed: tuple[str, ...]) -> None:
        if getattr(self, name) not in allowed:
            raise ValueError(f"{name} is {getattr(self, name)!r}; allowed are {', '.join(allowed)}")

    def _whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} is {value!r}; allowed are whole numbers from {least}")

    @property
    def data_path(self) -> Path | None:
        """The file or folder that holds the data; None if it is a Hugging Face data set."""
        if self.hf_dataset is not None or self.data is None:
            return None
        path = Path(self.data).expanduser()
        return path if path.exists() else None

    @property
    def is_text_file(self) -> bool:
        """Whether the data is one text."""
        return self.data_path is not None and self.data_path.is_file()

    @property
    def course(self) -> dict[str, Any]:
        """The options on which every loss of a run depends."""
        chosen = asdict(self)
        for name in (
            "iters", "val_batches", "test_batches", "steps_per_report", "steps_per_eval",
            "save_every", "adapter_path", "resume", "report_to", "project_name",
            "clear_cache_threshold", "trust_remote_code",
        ):  # fmt: skip
            del chosen[name]
        return chosen


def read_config(path: Path) -> dict[str, Any]:
    """The options in a YAML file, by mlx-lm's rules for numbers.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, or an option that there is not.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no config at {path}: no such file")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), yaml_loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; allowed are options by name")
    known = {option.name for option in fields(Options)} | {"train", "test"}
    if unknown := sorted(str(name) for name in content if name not in known):
        raise ValueError(f"{path}: no option {', '.join(unknown)}; there are {sorted(known)}")
    return content
