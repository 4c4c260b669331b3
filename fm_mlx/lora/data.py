"""Examples to train on, from files that people write."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tuner.datasets import create_dataset
from mlx_lm.tuner.datasets import load_dataset as load_hub_dataset
from tqdm import tqdm

from fm_mlx.chat import template_errors
from fm_mlx.lora.options import Options

SPLITS = ("train", "valid", "test")

# Of a text file: what is trained on, and where the part held out for the test begins.
_TRAINED, _TESTED = 0.90, 0.95


@dataclass(frozen=True)
class Example:
    """A text to learn from, or the part of it that counts.

    Attributes:
        tokens: The token ids of the whole text, (T,) int32.
        offset: The first token that the loss counts; those before it are read only.
    """

    tokens: np.ndarray
    offset: int = 0


def load_data(
    options: Options, tokenizer: TokenizerWrapper, splits: Sequence[str] = SPLITS
) -> dict[str, list[Example]]:
    """The examples of each of the splits; an empty list where there are none.

    Raises:
        FileNotFoundError: no such data.
        ValueError: names file and line of what is no example.
    """
    path = options.data_path
    if path is not None and path.is_dir():
        return {name: _read_split(path / f"{name}.jsonl", options, tokenizer) for name in splits}
    if path is not None:
        parts = _text_parts(path)
        return {name: _windows(parts[name], options, tokenizer) for name in splits}
    found: dict[str, Any] = dict(zip(SPLITS, _from_hub(options, tokenizer, splits), strict=True))
    return {name: _processed(found[name]) for name in splits}


def _windows(texts: list[str], options: Options, tokenizer: TokenizerWrapper) -> list[Example]:
    """Texts whole for streams, else in windows of the longest row."""
    examples = _tokenized(texts, lambda text: (tokenizer.encode(text), 0))
    if options.batching == "stream":
        return examples
    length = options.max_seq_length
    return [
        Example(example.tokens[start : start + length + 1])
        for example in examples
        for start in range(0, len(example.tokens) - 1, length)
    ]


def _text_parts(path: Path) -> dict[str, list[str]]:
    """A text, cut at line ends; the splits follow each other."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: byte {error.start}") from error
    if not text.strip():
        raise ValueError(f"{path} is empty")
    cuts = [0]
    for share in (_TRAINED, _TESTED):
        cuts.append(text.find("\n", int(len(text) * share)) + 1 or len(text))
    cuts.append(len(text))
    parts = [text[a:b] for a, b in pairwise(cuts)]
    return {name: [part] if part else [] for name, part in zip(SPLITS, parts, strict=True)}


def _read_split(path: Path, options: Options, tokenizer: TokenizerWrapper) -> list[Example]:
    if not path.is_file():
        return []
    kind, items = _read_lines(path, options)
    if not items:
        return []
    if kind == "messages" and not tokenizer.has_chat_template:
        raise ValueError(f"{path}: messages need a tokenizer with a chat template")
    if kind == "prompt" and not tokenizer.has_chat_template:
        return _tokenized(items, lambda item: _joined(item, options, tokenizer))
    try:
        return _processed(create_dataset(items, cast(Any, tokenizer), options))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_lines(path: Path, options: Options) -> tuple[str, list[dict[str, Any]]]:
    """The objects of a file of JSON lines, and the kind they all are."""
    kinds = {
        "prompt": {options.prompt_feature: str, options.completion_feature: str},
        "messages": {options.chat_feature: list},
        "text": {options.text_feature: str},
    }
    kind, items = "", []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            item = json.loads(line.decode())
        except ValueError as error:
            raise ValueError(f"{where}: not a line of JSON: {error}") from error
        if not isinstance(item, dict):
            raise ValueError(f"{where}: a {type(item).__name__}; allowed is an object")
        if not kind:
            kind = next((name for name, keys in kinds.items() if keys.keys() <= item.keys()), "")
            if not kind:
                allowed = " or ".join(" and ".join(keys) for keys in kinds.values())
                raise ValueError(f"{where}: has {', '.join(item) or 'no keys'}; wanted: {allowed}")
        for key, wanted in kinds[kind].items():
            if not isinstance(item.get(key), wanted) or not item[key]:
                found = "nothing" if not item.get(key) else type(item[key]).__name__
                raise ValueError(f"{where}: {key} is {found}; wanted: {wanted.__name__}, not empty")
        items.append(item)
    return kind, items


def _joined(
    item: dict[str, str], options: Options, tokenizer: TokenizerWrapper
) -> tuple[list[int], int]:
    """Prompt and completion one after the other, for a model that has no chat template."""
    prompt = tokenizer.encode(item[options.prompt_feature])
    completion = tokenizer.encode(item[options.completion_feature], add_special_tokens=False)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return prompt + completion + end, len(prompt) if options.mask_prompt else 0


def _from_hub(
    options: Options, tokenizer: TokenizerWrapper, splits: Sequence[str]
) -> tuple[Any, Any, Any]:
    """mlx-lm's data sets of train, valid and test."""
    asked = SimpleNamespace(**vars(options), train="train" in splits, test="test" in splits)
    try:
        return load_hub_dataset(asked, cast(Any, tokenizer))
    except ModuleNotFoundError as error:
        raise FileNotFoundError(
            f"no file or folder {options.data}; Hugging Face data needs: pip install {error.name}"
        ) from error
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"no data {options.data}: {error}") from error


def _processed(dataset: Any) -> list[Example]:
    """The examples of a data set of mlx-lm."""
    items = [dataset[i] for i in range(len(dataset))]
    return _tokenized(items, dataset.process) if items else []


def _tokenized(items: Sequence[Any], process: Any) -> list[Example]:
    quiet = not sys.stderr.isatty()
    examples = []
    for item in tqdm(items, desc="tokens", disable=quiet, delay=2, unit="example"):
        with template_errors():
            tokens, offset = process(item)
        examples.append(Example(np.array(tokens, np.int32), offset))
    return examples
