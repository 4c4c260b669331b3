"""``fm-mlx generate``: options, the prompt's text, progress and the report at the end."""

from __future__ import annotations

import argparse
import codecs
import io
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from fm_mlx.cli_types import number, parsed, whole

_READ_BYTES = 16384
# Prompt tokens after which memory should no longer grow.
_SETTLED = 4096
# Stands for the user's text while a chat template is filled in.
_PLACEHOLDER = "<query>"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", help="model folder or Hugging Face repository (default: the packaged model)"
    )
    parser.add_argument("--adapter-path", help="folder of LoRA adapters")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", "-p", help="text to go on from; '-' reads standard input")
    prompt.add_argument(
        "--prompt-file", metavar="FILE", help="UTF-8 text of any length; '-' reads standard input"
    )
    parser.add_argument(
        "--max-tokens",
        "-m",
        type=_max_tokens,
        default=100,
        help="tokens to generate; -1: until the text ends (default: 100)",
    )
    for name, allowed, default, purpose in (
        ("temp", (0, math.inf), 0.0, "sampling temperature; 0: always the likeliest token"),
        ("top-p", (0, 1), 1.0, "sample from the likeliest tokens of this total probability"),
        ("min-p", (0, 1), 0.0, "least probability, as a part of the likeliest token's"),
        ("xtc-probability", (0, 1), 0.0, "probability of XTC sampling, for each token"),
        ("xtc-threshold", (0, 0.5), 0.1, "least probability of a token that XTC may drop"),
    ):
        parser.add_argument(
            f"--{name}", type=number(*allowed), default=default, help=f"{purpose} ({default})"
        )
    for name, least, default, purpose in (
        ("top-k", 0, 0, "sample from this many likeliest tokens; 0: from all"),
        ("min-tokens-to-keep", 1, 1, "tokens that min-p leaves at least"),
        ("prefill-step-size", 1, 2048, "prompt tokens read at a time"),
    ):
        parser.add_argument(
            f"--{name}", type=whole(least), default=default, help=f"{purpose} ({default})"
        )
    parser.add_argument("--seed", type=whole(0), help="of the sampling")
    parser.add_argument(
        "--extra-eos-token", nargs="+", default=(), help="more tokens that end the text"
    )
    parser.add_argument("--system-prompt", help="for the chat template")
    parser.add_argument("--prefill-response", help="beginning of the answer, for the chat template")
    parser.add_argument("--chat-template-config", help="JSON object of options of the template")
    parser.add_argument(
        "--ignore-chat-template", action="store_true", help="use the prompt as it stands"
    )
    parser.add_argument("--prompt-cache-file", help="saved state to go on from")
    parser.add_argument(
        "--verbose",
        type=lambda text: text.lower() not in ("false", "f"),
        default=True,
        help="False: print nothing but the generated text",
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code a checkpoint brings"
    )


def run(args: argparse.Namespace) -> int:
    with ExitStack() as files:
        text = _open_prompt(args, files)
        return _generate(args, text)


def _generate(args: argparse.Namespace, text: str | FileText) -> int:
    # heavy imports, after what can be checked without them
    import mlx.core as mx
    from mlx_lm.sample_utils import make_sampler

    from fm_mlx.generation import stream_generate, summary
    from fm_mlx.loading import check_state, load, load_state

    if args.seed is not None:
        mx.random.seed(args.seed)
    source, cache, tokenizer_config = args.model, None, {}
    if args.prompt_cache_file is not None:
        cache, metadata = load_state(args.prompt_cache_file)
        tokenizer_config = json.loads(metadata.get("tokenizer_config", "{}"))
        tokenizer_config.pop("trust_remote_code", None)
        source = _model_of_state(source, metadata.get("model"))
    model, tokenizer = load(
        source,
        adapter_path=args.adapter_path,
        tokenizer_config=tokenizer_config,
        trust_remote_code=args.trust_remote_code,
    )
    if cache is not None:
        check_state(cache, model, args.prompt_cache_file)
    for token in args.extra_eos_token:
        tokenizer.add_eos_token(token)
    templated = tokenizer.has_chat_template and not args.ignore_chat_template
    if templated:
        prompt = _in_chat_template(args, tokenizer, text, continued=cache is not None)
    else:
        for option in ("system_prompt", "prefill_response", "chat_template_config"):
            if getattr(args, option) is not None:
                raise ValueError(
                    f"--{option.replace('_', '-')} takes a chat template; none is used"
                )
        prompt = text

    progress = Progress(text if isinstance(text, FileText) else None)
    responses = stream_generate(
        model,
        tokenizer,
        prompt,
        args.max_tokens,
        prompt_cache=cache,
        prefill_step_size=args.prefill_step_size,
        prompt_progress_callback=progress,
        add_special_tokens=not templated,
        sampler=make_sampler(
            args.temp,
            args.top_p,
            args.min_p,
            args.min_tokens_to_keep,
            top_k=args.top_k,
            xtc_probability=args.xtc_probability,
            xtc_threshold=args.xtc_threshold,
            xtc_special_tokens=[*tokenizer.encode("\n"), *tokenizer.eos_token_ids],
        ),
    )
    with progress:
        response = next(responses)
    if args.verbose:
        print("=" * 10)
    print(response.text, end="", flush=True)
    for response in responses:
        print(response.text, end="", flush=True)
    print()
    if args.verbose:
        print("=" * 10)
        first, *others = summary(response)
        seconds = response.prompt_tokens / response.prompt_tps
        print(f"{first}, {seconds:.3f} s", *others, sep="\n")
        if progress.settled_peak is not None and response.prompt_tokens > _SETTLED:
            growth = (mx.get_peak_memory() - progress.settled_peak) / 1e6
            print(f"Memory growth past 4k tokens: {growth:.1f} MB")
    return 0


class FileText:
    """The text of an open UTF-8 file, iterated over in pieces; line ends become ``\\n``.

    Attributes:
        bytes_read: of the file, so far.
        size: of the file in bytes, or None if that is not known.

    Raises:
        ValueError: the file is empty, or not UTF-8; from the iteration.
    """

    def __init__(self, file: BinaryIO, name: str, size: int | None):
        self._file = file
        self._name = name
        self.size = size
        self.bytes_read = 0

    def __iter__(self) -> Iterator[str]:
        utf8 = codecs.getincrementaldecoder("utf-8")()
        decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
        while True:
            data = self._file.read(_READ_BYTES)
            pending = len(utf8.getstate()[0])
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                offset = self.bytes_read - pending + error.start
                raise ValueError(
                    f"{self._name} is not UTF-8 text: {error.reason} at byte {offset}"
                ) from error
            self.bytes_read += len(data)
            if text:
                yield text
            if not data:
                break
        if not self.bytes_read:
            raise ValueError(f"the prompt is empty: {self._name} has no text")


class Progress:
    """Follows the reading of a prompt: a bar where it takes long, and the memory it takes.

    The bar goes to standard error, if that is a terminal, after two seconds.

    Attributes:
        settled_peak: MLX's peak memory in bytes once 4096 tokens had been read.
    """

    def __init__(self, file: FileText | None):
        from tqdm import tqdm

        self.settled_peak: int | None = None
        self._file = file if file is not None and file.size is not None else None
        self._started = time.perf_counter()
        unit: dict[str, Any] = {"unit": " tokens"}
        if self._file is not None:
            unit = {
                "total": self._file.size,
                "bar_format": "{l_bar}{bar}| {remaining} left{postfix}",
            }
        self._bar = tqdm(
            desc="Reading",
            delay=2,
            leave=False,
            disable=not sys.stderr.isatty(),
            file=sys.stderr,
            **unit,
        )

    def __call__(self, read: int, total: int | None) -> None:
        import mlx.core as mx

        if read >= _SETTLED and self.settled_peak is None:
            self.settled_peak = mx.get_peak_memory()
        if self._file is None:
            self._bar.total = total
            self._bar.update(read - self._bar.n)
            return
        speed = read / max(time.perf_counter() - self._started, 1e-9)
        self._bar.set_postfix_str(f"{read:,} tokens, {speed:,.0f} tokens/s", refresh=False)
        self._bar.update(self._file.bytes_read - self._bar.n)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _open_prompt(args: argparse.Namespace, files: ExitStack) -> str | FileText:
    """The prompt: text, or a file whose text is read later."""
    if args.prompt_file is None:
        prompt = args.prompt.replace("\\n", "\n").replace("\\t", "\t")
        if not prompt:
            raise ValueError("the prompt is empty: --prompt has no text")
        if prompt != "-":
            return prompt
    if args.prompt_file in (None, "-"):
        return FileText(sys.stdin.buffer, "standard input", None)
    path = Path(args.prompt_file)
    if path.is_dir():
        raise ValueError(f"--prompt-file {path} is a folder; allowed is a text file")
    if not path.exists():
        raise FileNotFoundError(f"no prompt file {path}: no such file")
    file = files.enter_context(path.open("rb"))
    return FileText(file, str(path), os.fstat(file.fileno()).st_size if path.is_file() else None)


def _model_of_state(asked: str | None, saved: str | None) -> str | None:
    """The model to load for a saved state: the one that made it."""
    if asked is not None and saved is not None and asked != saved:
        raise ValueError(f"--prompt-cache-file was made by {saved}, not by --model {asked}")
    return asked or saved


def _in_chat_template(
    args: argparse.Namespace, tokenizer: Any, text: str | FileText, continued: bool
) -> str | Iterable[str]:
    """The prompt as a user's message; ``continued``: its beginning is in the saved state."""
    options = json.loads(args.chat_template_config or "{}")
    if not isinstance(options, dict):
        raise ValueError("--chat-template-config: allowed is a JSON object")
    answering = args.prefill_response is not None

    def fill_in(message: str) -> str:
        messages = [{"role": "user", "content": message}]
        if args.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": args.system_prompt})
        if answering:
            messages.append({"role": "assistant", "content": args.prefill_response})
        return tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            continue_final_message=answering,
            add_generation_prompt=not answering,
            **options,
        )

    before, found, after = fill_in(_PLACEHOLDER).partition(_PLACEHOLDER)
    if isinstance(text, str):
        return fill_in(text)[len(before) if continued else 0 :]
    if not found:
        raise ValueError("the model's chat template leaves out the user's message")
    return _pieces("" if continued else before, text, after)


def _pieces(before: str, text: Iterable[str], after: str) -> Iterator[str]:
    yield before
    yield from text
    yield after


def _max_tokens(text: str) -> int:
    value = parsed(int, text)
    if value is None or (value < 1 and value != -1):
        raise argparse.ArgumentTypeError(
            f"{text!r}; allowed are whole numbers from 1, and -1 for no limit"
        )
    return value
