"""``fm-mlx server``: serve a model and its memories over HTTP, with OpenAI's interface."""

from __future__ import annotations

import argparse
from pathlib import Path

from fm_mlx.commands.arguments import number, whole

_MEGABYTE = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", help="model folder or Hugging Face repository (default: the packaged model)"
    )
    parser.add_argument("--adapter-path", help="folder of LoRA adapters")
    parser.add_argument("--host", default="127.0.0.1", help="address (default: 127.0.0.1)")
    parser.add_argument("--port", type=whole(0), default=8080, help="port (default: 8080)")
    parser.add_argument(
        "--allowed-origins",
        type=lambda text: text.split(","),
        default=[],
        metavar="ORIGIN,...",
        help="web pages that may use the server; * for all (default: none)",
    )
    parser.add_argument(
        "--memory",
        type=_named_file,
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="serve a memory under a name; may be given again",
    )
    parser.add_argument(
        "--memory-dir",
        metavar="FOLDER",
        help="keep memories that are read through the server here, and serve those that are there",
    )
    parser.add_argument("--chat-template", metavar="FILE", help="Jinja template of conversations")
    for name, most, default, purpose in (
        ("temp", 100, 0.0, "sampling temperature; 0: always the likeliest token"),
        ("top-p", 1, 1.0, "sample from the likeliest tokens of this total probability"),
        ("min-p", 1, 0.0, "least probability, as a part of the likeliest token's"),
    ):
        parser.add_argument(
            f"--{name}", type=number(0, most), default=default, help=f"{purpose} ({default})"
        )
    for name, least, default, purpose in (
        ("top-k", 0, 0, "sample from this many likeliest tokens; 0: from all"),
        ("max-tokens", 1, 512, "tokens of an answer"),
        ("prefill-step-size", 1, 512, "tokens of a prompt read between two tokens of the answers"),
        ("decode-concurrency", 1, 32, "answers that are generated at once"),
        ("prompt-cache-bytes", 0, 1 << 30, "bytes of states of earlier prompts"),
        ("max-prompt-tokens", 1, 1 << 21, "tokens of a prompt, at most"),
        ("max-body-bytes", 1, 8 * _MEGABYTE, "bytes of a request, at most"),
        ("max-queue", 1, 64, "requests worked on at once, at most"),
        ("max-memories", 0, 64, "memories, at most"),
    ):
        parser.add_argument(
            f"--{name}", type=whole(least), default=default, help=f"{purpose} ({default})"
        )
    parser.add_argument(
        "--log-level",
        choices=("critical", "error", "warning", "info", "debug"),
        default="info",
        help="what is logged (default: info)",
    )


def run(args: argparse.Namespace) -> int:
    if args.port > 65535:
        raise ValueError(f"--port is {args.port}; allowed are 0 to 65535")
    template = None if args.chat_template is None else _text_of(Path(args.chat_template))
    # heavy imports, after what can be checked without them
    import mlx.core as mx

    from fm_mlx.loading import load
    from fm_mlx.memory import PrefixStore
    from fm_mlx.serving.app import application
    from fm_mlx.serving.engine import Engine
    from fm_mlx.serving.named import NamedMemories
    from fm_mlx.serving.running import serve
    from fm_mlx.serving.settings import Settings

    model, tokenizer = load(args.model, adapter_path=args.adapter_path)
    mx.eval(model.parameters())
    folder = None if args.memory_dir is None else Path(args.memory_dir)
    memories = NamedMemories(model, tokenizer, args.max_memories, folder)
    for name, path in args.memory:
        memories.add_file(name, path)
    settings = Settings(
        name=_name_of(args.model),
        max_body=args.max_body_bytes,
        max_prompt_tokens=args.max_prompt_tokens,
        max_queue=args.max_queue,
        max_tokens=args.max_tokens,
        temperature=args.temp,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        chat_template=template,
        allowed_origins=tuple(args.allowed_origins),
    )
    engine = Engine(
        model,
        tokenizer,
        PrefixStore(args.prompt_cache_bytes),
        args.prefill_step_size,
        args.decode_concurrency,
    )
    app = application(model, tokenizer, engine, memories, settings)
    serve(app, engine, args.host, args.port, args.log_level)
    return 0


def _name_of(model: str | None) -> str:
    """What the model is called: the last name of its path, the repository, or "fm-mlx"."""
    if model is None:
        return "fm-mlx"
    path = Path(model)
    return path.resolve().name if path.exists() else model


def _named_file(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed is NAME=FILE")
    return name, Path(path)


def _text_of(path: Path) -> str:
    from fm_mlx.support.files import check_regular

    check_regular(path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason}") from error
