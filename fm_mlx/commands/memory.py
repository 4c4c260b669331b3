"""``fm-mlx memory``: read texts into memories that are kept as files, and look at them."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fm_mlx.commands import generate
from fm_mlx.commands import memory_report as report
from fm_mlx.commands.arguments import number, whole
from fm_mlx.commands.reading import FileText, Progress, open_prompt

if TYPE_CHECKING:
    from fm_mlx.memory import Memory

BITS = (32, 8)

# A memory is saved again when this many times the time of the last saving has passed.
_BETWEEN_SAVES = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    tasks = parser.add_subparsers(metavar="task", required=True)

    read = tasks.add_parser("read", help="read a text into a new memory")
    read.add_argument("text", help="UTF-8 file of any length; '-' reads standard input")
    read.add_argument("--output", "-o", required=True, metavar="MEMORY", help="file to write")
    read.add_argument("--overwrite", action="store_true", help="replace a memory that is there")
    read.set_defaults(task=_read)

    ask = tasks.add_parser("ask", help="go on from a memory; the file stays as it is")
    ask.add_argument("memory", help="file of the memory")
    ask.add_argument("prompt", help="text to go on from; '-' reads standard input")
    generate.add_options(ask)
    ask.set_defaults(task=generate.run, prompt_file=None, prompt_cache_file=None)

    append = tasks.add_parser("append", help="read one more text into a memory")
    append.add_argument("memory", help="file of the memory; changed in place")
    append.add_argument("text", help="UTF-8 file of any length; '-' reads standard input")
    append.set_defaults(task=_append)

    rewind = tasks.add_parser("rewind", help="go back to an earlier token")
    rewind.add_argument("memory", help="file of the memory; stays as it is")
    where = rewind.add_mutually_exclusive_group(required=True)
    where.add_argument("tokens", type=whole(0), nargs="?", help="how many tokens to keep")
    where.add_argument("--before", metavar="TEXT", help="go back to before this text was read")
    rewind.add_argument(
        "--source",
        nargs="+",
        default=[],
        metavar="FILE",
        help="texts to read again from the snapshot before, in the order they were read in",
    )
    rewind.add_argument("--output", "-o", required=True, metavar="MEMORY", help="file to write")
    rewind.set_defaults(task=_rewind)

    info = tasks.add_parser("info", help="say what a memory has read, and what is left of it")
    info.add_argument("memory", help="file of the memory")
    info.add_argument("--plot", metavar="PNG", help="draw what is left of each text in each row")
    info.set_defaults(task=report.info)

    diff = tasks.add_parser("diff", help="say where two memories part, and how far they are apart")
    diff.add_argument("memory", help="file of a memory")
    diff.add_argument("other", help="file of another")
    diff.set_defaults(task=report.diff)

    for task in (read, append):
        task.add_argument(
            "--save-every",
            type=number(0),
            default=30,
            metavar="SECONDS",
            help="time after which what was read is saved, at least (default: 30)",
        )
    for task in (read, append, rewind):
        task.add_argument(
            "--bits",
            type=int,
            choices=BITS,
            default=32,
            help="bits of a number in the file; 8 rounds, and takes a quarter (default: 32)",
        )
        task.add_argument(
            "--model", help="model folder or Hugging Face repository (default: the packaged model)"
        )
        task.add_argument("--adapter-path", help="folder of LoRA adapters")


def run(args: argparse.Namespace) -> int:
    return args.task(args)


def _read(args: argparse.Namespace) -> int:
    from fm_mlx.memory import Memory

    path = Path(args.output)
    with ExitStack() as files:
        source, name = _open(args.text, files)
        begun = Memory.load(path) if path.exists() and not args.overwrite else None
        if begun is not None and not _is_begun(begun, name):
            raise ValueError(
                f"{path} is there already: give --overwrite, or use fm-mlx memory append"
            )
        return _read_on(args, begun, path, source, name)


def _append(args: argparse.Namespace) -> int:
    from fm_mlx.memory import Memory

    path = Path(args.memory)
    with ExitStack() as files:
        source, name = _open(args.text, files)
        return _read_on(args, Memory.load(path), path, source, name)


def _read_on(
    args: argparse.Namespace,
    memory: Memory | None,
    path: Path,
    source: FileText,
    name: str,
) -> int:
    """Read a text, or the rest of it, and save what was read whatever happens."""
    from fm_mlx.memory import Memory

    model, tokenizer = _load(args)
    if memory is None:
        memory = Memory.empty(model, tokenizer)
    else:
        memory.check(model, tokenizer)
    if _is_begun(memory, name):
        print(f"Going on after {memory.texts[-1].tokens:,} tokens of {name}.", file=sys.stderr)
    before = saved = memory.tokens_seen
    started = last = time.perf_counter()
    pause = args.save_every
    terminated = signal.signal(signal.SIGTERM, signal.default_int_handler)
    status = 0
    try:
        with Progress(source) as progress:
            reading = memory.read(model, tokenizer, source, name=name)
            # broken off anywhere, this is the memory after the last whole piece
            for memory in reading:
                progress(memory.tokens_seen - before, None)
                now = time.perf_counter()
                if now - last > pause:
                    memory.save(path, bits=args.bits)
                    saved, last = memory.tokens_seen, time.perf_counter()
                    pause = max(args.save_every, _BETWEEN_SAVES * (last - now))
    except KeyboardInterrupt:
        status = 130
    finally:
        signal.signal(signal.SIGTERM, terminated)
        if memory.tokens_seen > saved:
            memory.save(path, bits=args.bits)
    if status and memory.tokens_seen:
        print(f"Stopped; fm-mlx memory append {path} {args.text} goes on.", file=sys.stderr)
    seconds = time.perf_counter() - started
    tokens = memory.tokens_seen - before
    print(f"{path}: {memory.tokens_seen:,} tokens, {memory.nbytes / 1e6:.1f} MB")
    print(f"Read: {tokens:,} tokens, {tokens / seconds:,.0f} tokens-per-sec, {seconds:.1f} s")
    return status


def _rewind(args: argparse.Namespace) -> int:
    from fm_mlx.memory import Memory

    memory = Memory.load(args.memory)
    if Path(args.output).exists():
        raise ValueError(f"{args.output} is there already: remove it, or give another path")
    tokens = args.tokens if args.before is None else _tokens_before(memory, args.before)
    back = memory.rewind(*_load(args), tokens, list(map(Path, args.source)))
    back.save(args.output, bits=args.bits)
    print(f"{args.output}: {back.tokens_seen:,} tokens, {back.nbytes / 1e6:.1f} MB")
    return 0


def _tokens_before(memory: Memory, name: str) -> int:
    """How many tokens had been read before a text."""
    names = [text.name for text in memory.texts]
    if names.count(name) != 1:
        found = "several texts" if name in names else "no text"
        raise ValueError(f"--before: {found} of the memory are called {name}; it read {names}")
    return sum(text.tokens for text in memory.texts[: names.index(name)])


def _open(text: str, files: ExitStack) -> tuple[FileText, str]:
    source = open_prompt(None, text, files)
    assert isinstance(source, FileText)
    return source, "standard input" if text == "-" else Path(text).name


def _is_begun(memory: Memory, name: str) -> bool:
    return bool(memory.texts) and not memory.texts[-1].complete and memory.texts[-1].name == name


def _load(args: argparse.Namespace) -> tuple[Any, Any]:
    from fm_mlx.loading import load

    return load(args.model, adapter_path=args.adapter_path)
