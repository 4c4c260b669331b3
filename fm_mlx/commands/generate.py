"""``fm-mlx generate``: options, the prompt's text, progress and the report at the end."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from fm_mlx.chat import template_errors
from fm_mlx.commands.arguments import number, parsed, whole
from fm_mlx.commands.reading import SETTLED, FileText, Progress, open_prompt

# Stands for the user's text while a chat template is filled in.
_PLACEHOLDER = "<query>"

# Characters that a chat template may put around the user's text.
_LONGEST_TEMPLATE = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", "-p", help="text to go on from; '-' reads standard input")
    prompt.add_argument(
        "--prompt-file", metavar="FILE", help="UTF-8 text of any length; '-' reads standard input"
    )
    state = parser.add_mutually_exclusive_group()
    state.add_argument("--memory", metavar="FILE", help="memory to go on from (fm-mlx memory)")
    state.add_argument("--prompt-cache-file", help="saved state to go on from")
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what can be said of any generation: the model, its sampling, the drafts, the output."""
    parser.add_argument(
        "--model", help="model folder or Hugging Face repository (default: the packaged model)"
    )
    parser.add_argument("--adapter-path", help="folder of LoRA adapters")
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
    drafts = parser.add_mutually_exclusive_group()
    drafts.add_argument(
        "--draft-model", help="smaller model of the same tokenizer that drafts tokens to be checked"
    )
    drafts.add_argument(
        "--prompt-lookup",
        action="store_true",
        help="draft what followed the last tokens where they stood before in the text",
    )
    parser.add_argument(
        "--num-draft-tokens",
        type=whole(1),
        help="most tokens to draft at a time (3 with a draft model, 8 with --prompt-lookup)",
    )
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
        text = open_prompt(args.prompt, args.prompt_file, files)
        return _generate(args, text)


def _generate(args: argparse.Namespace, text: str | FileText) -> int:
    # heavy imports, after what can be checked without them
    import mlx.core as mx
    from mlx_lm.sample_utils import make_sampler

    from fm_mlx.generation import stream_generate, summary
    from fm_mlx.loading import check_state, load, load_state
    from fm_mlx.memory import Memory
    from fm_mlx.support.random_state import preserved

    drafting = args.prompt_lookup or args.draft_model is not None
    if args.num_draft_tokens is not None and not drafting:
        raise ValueError("--num-draft-tokens takes --draft-model or --prompt-lookup")
    if args.seed is not None:
        mx.random.seed(args.seed)
    memory = None if args.memory is None else Memory.load(args.memory)
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
    if args.prompt_cache_file is not None and cache is not None:
        check_state(cache, model, args.prompt_cache_file)
    draft_model = None
    if args.draft_model is not None:
        with preserved():  # a seed gives the text that it gives without drafts
            draft_model = _load_draft_model(args, tokenizer)
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
        memory=memory,
        draft_model=draft_model,
        prompt_lookup=args.prompt_lookup,
        num_draft_tokens=args.num_draft_tokens,
        prefill_step_size=args.prefill_step_size,
        prompt_progress_callback=progress,
        add_special_tokens=not templated and memory is None,
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
    drafted = response.from_draft
    for response in responses:
        print(response.text, end="", flush=True)
        drafted += response.from_draft
    print()
    if args.verbose:
        print("=" * 10)
        first, *others = summary(response)
        seconds = response.prompt_tokens / response.prompt_tps
        print(f"{first}, {seconds:.3f} s", *others, sep="\n")
        if drafting:
            print(f"Drafts: {drafted} of the {response.generation_tokens} tokens")
        if progress.settled_peak is not None and response.prompt_tokens > SETTLED:
            growth = (mx.get_peak_memory() - progress.settled_peak) / 1e6
            print(f"Memory growth past 4k tokens: {growth:.1f} MB")
    return 0


def _model_of_state(asked: str | None, saved: str | None) -> str | None:
    """The model to load for a saved state: the one that made it."""
    if asked is not None and saved is not None and asked != saved:
        raise ValueError(f"--prompt-cache-file was made by {saved}, not by --model {asked}")
    return asked or saved


def _load_draft_model(args: argparse.Namespace, tokenizer: Any) -> Any:
    """The model that drafts, ours or mlx-lm's, which must have the same tokenizer."""
    from fm_mlx.evaluation.models import load_any

    model, its_tokenizer = load_any(args.draft_model, args.trust_remote_code)
    if its_tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ValueError(f"--draft-model {args.draft_model} has another tokenizer than the model")
    return model


def _in_chat_template(
    args: argparse.Namespace, tokenizer: Any, text: str | FileText, continued: bool
) -> str | Iterable[str]:
    """The prompt as a user's message; ``continued``: its beginning is in the saved state."""
    try:
        options = json.loads(args.chat_template_config or "{}")
    except ValueError as error:
        raise ValueError(f"--chat-template-config is not JSON: {error}") from error
    if not isinstance(options, dict):
        raise ValueError("--chat-template-config: allowed is a JSON object")
    answering = args.prefill_response is not None

    def fill_in(message: str) -> str:
        messages = [{"role": "user", "content": message}]
        if args.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": args.system_prompt})
        if answering:
            messages.append({"role": "assistant", "content": args.prefill_response})
        with template_errors():
            filled = tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                continue_final_message=answering,
                add_generation_prompt=not answering,
                **options,
            )
        if len(filled) > len(message) + _LONGEST_TEMPLATE:
            raise ValueError(f"the model's chat template adds {len(filled):,} characters")
        return filled

    before, found, after = fill_in(_PLACEHOLDER).partition(_PLACEHOLDER)
    if not found:
        raise ValueError("the model's chat template leaves out the user's message")
    if isinstance(text, str):
        return fill_in(text)[len(before) if continued else 0 :]
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
