"""``fm-mlx memory info`` and ``diff``: what is in memories, and what is left of what was read."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from fm_mlx.memory import Memory, Text

# Characters of a whole bar, and of a row's share from none of it to all.
_BAR = 30
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEVELS = " ▁▂▃▄▅▆▇█"

# Rows that are shown one by one; of more the largest shares are.
_ROWS = 64


def info(args: argparse.Namespace) -> int:
    """Print what a memory has read and what is left of it; draw it with ``--plot``."""
    from fm_mlx.memory import Memory
    from fm_mlx.memory.left import parts_left, texts_left
    from fm_mlx.memory.picture import draw
    from fm_mlx.support.tables import aligned

    memory = Memory.load(args.memory)
    layers, rows, width = memory.state.shape
    size = Path(args.memory).stat().st_size / 1e6
    print(f"{memory.tokens_seen:,} tokens; {layers} layers, m {rows}, d {width}; ", end="")
    print(f"{len(memory.snapshots)} snapshots, {size:.1f} MB")
    for text in memory.texts:
        print(_described(text))
    names = ["before the first token", *[text.name for text in memory.texts]]
    print(f"\nShare of the rows that each text still makes up: the mean, and each row to {_ROWS}")
    for name, part in zip(names, texts_left(memory), strict=True):
        print(f"\n{name}")
        for layer, share in enumerate(part.share):
            print(f"  layer {layer:<3} {share.mean():6.1%} {_bar(share.mean())} {_levels(share)}")
    print("\nThe same by the tokens between two snapshots, mean of a layer's rows\n")
    header = ["tokens", *[f"layer {layer}" for layer in range(layers)]]
    lines = [
        [f"{part.first:,} to {part.last:,}", *[f"{share:.1%}" for share in part.share.mean(-1)]]
        for part in parts_left(memory)
    ]
    print(*aligned([header, *lines]), sep="\n")
    if args.plot is not None:
        draw(memory, Path(args.plot))
        print(f"\n{args.plot}: what is left in each row")
    return 0


def diff(args: argparse.Namespace) -> int:
    """Print where two memories part, and how far apart their states are."""
    import numpy as np

    from fm_mlx.memory import Memory
    from fm_mlx.support.tables import aligned

    one, other = Memory.load(args.memory), Memory.load(args.other)
    same = sum(1 for _ in _common(one, other))
    print(f"{args.memory}: {one.tokens_seen:,} tokens; {args.other}: {other.tokens_seen:,} tokens")
    print(f"Texts in common: {same}")
    for path, memory in ((args.memory, one), (args.other, other)):
        for text in memory.texts[same:]:
            print(f"Only in {path}: {_described(text)}")
    wrong = [
        field.name
        for field in dataclasses.fields(one.identity)
        if getattr(one.identity, field.name) != getattr(other.identity, field.name)
    ]
    if wrong:
        print(f"They are of different models: {', '.join(wrong)}")
    states = [np.array(memory.state, np.float64) for memory in (one, other)]
    if states[0].shape != states[1].shape:
        print(f"Their states have the shapes {states[0].shape} and {states[1].shape}")
        return 1
    distance = np.linalg.norm(states[0] - states[1], axis=-1)
    size = np.linalg.norm(states[0], axis=-1)
    print()
    lines = [["layer", "distance", "of their length", "rows that differ"]]
    for layer, (far, long) in enumerate(zip(distance, size, strict=True)):
        whole = float(np.linalg.norm(long))
        share = f"{np.linalg.norm(far) / whole:.2e}" if whole else "-"
        lines.append(
            [str(layer), f"{np.linalg.norm(far):.3g}", share, f"{(far > 0).sum()} of {len(far)}"]
        )
    print(*aligned(lines), sep="\n")
    return int(bool(distance.any()))


def _common(one: Memory, other: Memory) -> Iterator[Text]:
    """The texts that both memories began with."""
    for a, b in zip(one.texts, other.texts, strict=False):
        if (a.sha256, a.tokens) != (b.sha256, b.tokens):
            return
        yield a


def _described(text: Text) -> str:
    end = "" if text.complete else ", not to its end"
    return (
        f"{text.name}: {text.tokens:,} tokens, bytes 0 to {text.bytes:,}{end}, "
        f"sha256 {text.sha256[:12]}, {text.read_at}"
    )


def _bar(share: float) -> str:
    """A bar of 30 characters for a share of 1."""
    eighths = round(min(max(share, 0), 1) * _BAR * 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip().ljust(_BAR)


def _levels(share: np.ndarray) -> str:
    """A character a row, the higher the larger its share; of many rows the largest shares."""
    shown = share.tolist() if len(share) <= _ROWS else sorted(share, reverse=True)[:_ROWS]
    return "".join(_LEVELS[round(min(max(x, 0), 1) * 8)] for x in shown)
