"""``fm-mlx memory``: read texts into memories that are kept as files, and look at them."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fm_mlx.commands.arguments import number, whole
from fm_mlx.commands.reading import FileText, Progress, open_prompt

if TYPE_CHECKING:
    from fm_mlx.memory import Memory

# A memory is saved again when this many times the time of the last saving has passed.
_BETWEEN_SAVES = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    tasks = parser.add_subparsers(metavar="task", required=True)

    read = tasks.add_parser("read", help="read a text into a new memory")
    read.add_argument("text", help="UTF-8 file of any length; '-' reads standard input")
    read.add_argument("--output", "-o", required=True, metavar="MEMORY", help="file to write")
    read.add_argument("--overwrite", action="store_true", help="replace a memory that is there")
    read.set_defaults(task=_read)

    append = tasks.add_parser("append", help="read one more text into a memory")
    append.add_argument("memory", help="file of the memory; changed in place")
    append.add_argument("text", help="UTF-8 file of any length; '-' reads standard input")
    append.set_defaults(task=_append)

    rewind = tasks.add_parser("rewind", help="go back to an earlier token")
    rewind.add_argument("memory", help="file of the memory; stays as it is")
    rewind.add_argument("tokens", type=whole(0), help="how many tokens to keep")
    rewind.add_argument("--source", help="file of the text that the last of them stands in")
    rewind.add_argument("--output", "-o", required=True, metavar="MEMORY", help="file to write")
    rewind.set_defaults(task=_rewind)

    info = tasks.add_parser("info", help="say what a memory has read, and what is left of it")
    info.add_argument("memory", help="file of the memory")
    info.set_defaults(task=_info)

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
            "--model", help="model folder or Hugging Face repository (default: the packaged model)"
        )
        task.add_argument("--adapter-path", help="folder of LoRA adapters")


def run(args: argparse.Namespace) -> int:
    return args.task(args)


def _read(args: argparse.Namespace) -> int:
    from fm_mlx import memory as memories

    path = Path(args.output)
    with ExitStack() as files:
        source, name = _open(args.text, files)
        begun = memories.load(path) if path.exists() and not args.overwrite else None
        if begun is not None and not _is_begun(begun, name):
            raise ValueError(
                f"{path} is there already: give --overwrite, or use fm-mlx memory append"
            )
        return _read_on(args, begun, path, source, name)


def _append(args: argparse.Namespace) -> int:
    from fm_mlx import memory as memories

    path = Path(args.memory)
    with ExitStack() as files:
        source, name = _open(args.text, files)
        return _read_on(args, memories.load(path), path, source, name)


def _read_on(
    args: argparse.Namespace,
    memory: Memory | None,
    path: Path,
    source: FileText,
    name: str,
) -> int:
    """Read a text, or the rest of it, and save what was read whatever happens."""
    from fm_mlx.memory import Memory, read, save
    from fm_mlx.memory.identity import identity_of

    model, tokenizer = _load(args)
    if memory is None:
        memory = Memory.empty(model, tokenizer)
    else:
        memory.identity.check(identity_of(model, tokenizer), str(path))
    if _is_begun(memory, name):
        print(f"Going on after {memory.texts[-1].tokens:,} tokens of {name}.", file=sys.stderr)
    before = saved = memory.tokens_seen
    started = last = time.perf_counter()
    pause = args.save_every
    terminated = signal.signal(signal.SIGTERM, signal.default_int_handler)
    status = 0
    try:
        with Progress(source) as progress:
            reading = read(memory, model, tokenizer, source, name=name)
            # broken off anywhere, this is the memory after the last whole piece
            for memory in reading:
                progress(memory.tokens_seen - before, None)
                now = time.perf_counter()
                if now - last > pause:
                    save(memory, path)
                    saved, last = memory.tokens_seen, time.perf_counter()
                    pause = max(args.save_every, _BETWEEN_SAVES * (last - now))
    except KeyboardInterrupt:
        status = 130
    finally:
        signal.signal(signal.SIGTERM, terminated)
        if memory.tokens_seen > saved:
            save(memory, path)
    if status and memory.tokens_seen:
        print(f"Stopped; fm-mlx memory append {path} {args.text} goes on.", file=sys.stderr)
    seconds = time.perf_counter() - started
    tokens = memory.tokens_seen - before
    print(f"{path}: {memory.tokens_seen:,} tokens, {memory.nbytes / 1e6:.1f} MB")
    print(f"Read: {tokens:,} tokens, {tokens / seconds:,.0f} tokens-per-sec, {seconds:.1f} s")
    return status


def _rewind(args: argparse.Namespace) -> int:
    from fm_mlx import memory as memories

    memory = memories.load(args.memory)
    if Path(args.output).exists():
        raise ValueError(f"{args.output} is there already: remove it, or give another path")
    source = None if args.source is None else Path(args.source)
    back = memories.rewind(memory, *_load(args), args.tokens, source)
    memories.save(back, args.output)
    print(f"{args.output}: {back.tokens_seen:,} tokens, {back.nbytes / 1e6:.1f} MB")
    return 0


def _info(args: argparse.Namespace) -> int:
    from fm_mlx import memory as memories
    from fm_mlx.memory.left import parts_left
    from fm_mlx.support.tables import aligned

    memory = memories.load(args.memory)
    layers, rows, width = memory.state.shape
    print(f"{memory.tokens_seen:,} tokens; {layers} layers, m {rows}, d {width}; ", end="")
    print(f"{len(memory.snapshots)} snapshots, {memory.nbytes / 1e6:.1f} MB")
    for text in memory.texts:
        end = "" if text.complete else ", not to its end"
        print(
            f"{text.name}: {text.tokens:,} tokens, bytes 0 to {text.bytes:,}{end}, "
            f"sha256 {text.sha256[:12]}, {text.read_at}"
        )
    print("\nShare of the rows that tokens still make up, mean of a layer's rows:\n")
    header = ["tokens", *[f"layer {i}" for i in range(layers)]]
    lines = [
        [f"{part.first:,} to {part.last:,}", *[f"{share:.1%}" for share in part.share.mean(-1)]]
        for part in parts_left(memory)
    ]
    print(*aligned([header, *lines]), sep="\n")
    return 0


def _open(text: str, files: ExitStack) -> tuple[FileText, str]:
    source = open_prompt(None, text, files)
    assert isinstance(source, FileText)
    return source, "standard input" if text == "-" else Path(text).name


def _is_begun(memory: Memory, name: str) -> bool:
    return bool(memory.texts) and not memory.texts[-1].complete and memory.texts[-1].name == name


def _load(args: argparse.Namespace) -> tuple[Any, Any]:
    from fm_mlx.loading import load

    return load(args.model, adapter_path=args.adapter_path)
