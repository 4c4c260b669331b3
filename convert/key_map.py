"""From a lab's names to ours: renaming, splitting, joining and turning tensors.

A key map is data, for the maps that come with the package (`builtin_maps`) as for a file of
the user's (JSON or TOML). Its steps run in this order, each on the names as the one before
left them; every pattern is a regular expression that is searched for in the name, and what
it matches is what a replacement replaces:

    ignore     patterns of tensors to leave out
    transpose  patterns of matrices stored the other way round
    rename     [pattern, replacement], all of them in order
    split      {match, into: [names], sizes: [rows]}: one tensor into several, by rows
    concat     {match: [patterns], into: name}: several into one, in the order of the patterns
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx

from fm_mlx.convert.checkpoint import DTYPES, Tensor


@dataclass(frozen=True)
class Weight:
    """A weight under its new name: tensors of the checkpoint and how it is made of them.

    Attributes:
        shape: The shape of the result.
        sources: The names in the checkpoint of what it is made of.
        read: Computes it, reading its sources.
        dtype: The dtype that it is read in.
    """

    shape: tuple[int, ...]
    sources: tuple[str, ...]
    read: Callable[[], mx.array]
    dtype: mx.Dtype = mx.float32

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Weight:
        return cls(tensor.shape, (name,), tensor.read, DTYPES[tensor.dtype])

    def nbytes(self, dtype: mx.Dtype | None = None) -> int:
        """Bytes, in the dtype it is read in or in another."""
        return math.prod(self.shape) * (dtype or self.dtype).size

    def transposed(self) -> Weight:
        return replace(self, shape=self.shape[::-1], read=lambda: self.read().T)

    def rows(self, start: int, count: int) -> Weight:
        shape = (count, *self.shape[1:])
        return replace(self, shape=shape, read=lambda: self.read()[start : start + count])

    @cached_property
    def as_rows(self) -> Weight:
        """A vector is a matrix of one row."""
        if len(self.shape) != 1:
            return self
        return replace(self, shape=(1, *self.shape), read=lambda: self.read()[None])


def joined(parts: list[Weight]) -> Weight:
    """Matrices of as many columns, and vectors, one below the other."""
    parts = [part.as_rows for part in parts]
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    sources = tuple(name for part in parts for name in part.sources)

    def read() -> mx.array:
        return mx.concatenate([part.read() for part in parts])

    return Weight(shape, sources, read, max((p.dtype for p in parts), key=lambda d: d.size))


@dataclass(frozen=True)
class Split:
    """One tensor into several; without sizes the shapes around it must decide."""

    match: re.Pattern
    into: tuple[str, ...]
    sizes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Concat:
    """Several tensors into one."""

    match: tuple[re.Pattern, ...]
    into: str


@dataclass(frozen=True)
class KeyMap:
    """How the names of a checkpoint become ours, in steps that follow each other.

    Each step takes the names as the one before left them. Every pattern is searched for in a
    name, and what it matches is what a replacement replaces.

    Attributes:
        name: What reports call the map.
        ignore: Patterns of tensors to leave out.
        transpose: Patterns of matrices that are stored the other way round.
        rename: Patterns with their replacements, all of them in order.
        split: Tensors to cut into several by rows.
        concat: Tensors to join into one.
    """

    name: str
    ignore: tuple[re.Pattern, ...] = ()
    transpose: tuple[re.Pattern, ...] = ()
    rename: tuple[tuple[re.Pattern, str], ...] = ()
    split: tuple[Split, ...] = ()
    concat: tuple[Concat, ...] = ()

    def apply(self, tensors: Mapping[str, Tensor]) -> dict[str, Weight]:
        """Weights by their new names; nothing is read.

        Raises:
            ValueError: if two tensors get one name, or sizes do not fit.
        """
        weights: dict[str, Weight] = {}
        for name, tensor in tensors.items():
            if any(pattern.search(name) for pattern in self.ignore):
                continue
            weight = Weight.of(name, tensor)
            if any(pattern.search(name) for pattern in self.transpose):
                weight = weight.transposed()
            new = name
            for pattern, replacement in self.rename:
                new = pattern.sub(replacement, new)
            _put(weights, new, weight)
        for split in self.split:
            weights = _split(weights, split)
        for concat in self.concat:
            weights = _concat(weights, concat)
        return weights

    def idle_patterns(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """A line for each pattern that matches no name that it meets in `apply`."""
        names = set(tensors)
        steps: list[tuple[str, int, re.Pattern, set[str]]] = []
        for i, pattern in enumerate(self.ignore, 1):
            steps.append(("ignore", i, pattern, names))
        kept = {name for name in names if not any(p.search(name) for p in self.ignore)}
        for i, pattern in enumerate(self.transpose, 1):
            steps.append(("transpose", i, pattern, kept))
        for i, (pattern, replacement) in enumerate(self.rename, 1):
            steps.append(("rename", i, pattern, kept))
            kept = {pattern.sub(replacement, name) for name in kept}
        for i, split in enumerate(self.split, 1):
            steps.append(("split", i, split.match, kept))
            parts = {split.match.sub(into, name, count=1) for name in kept for into in split.into}
            kept = {name for name in kept if not split.match.search(name)} | parts
        for i, concat in enumerate(self.concat, 1):
            steps += [("concat", i, pattern, kept) for pattern in concat.match]
        return [
            f"{step} {i} of {self.name}: {pattern.pattern!r} matches no name"
            for step, i, pattern, met in steps
            if not any(pattern.search(name) for name in met)
        ]


def _put(weights: dict[str, Weight], name: str, weight: Weight) -> None:
    if name in weights:
        both = f"{', '.join(weights[name].sources)} and {', '.join(weight.sources)}"
        raise ValueError(f"{both} both become {name}")
    weights[name] = weight


def _split(weights: dict[str, Weight], split: Split) -> dict[str, Weight]:
    result: dict[str, Weight] = {}
    for name, weight in weights.items():
        if not split.match.search(name):
            _put(result, name, weight)
            continue
        names = [split.match.sub(into, name, count=1) for into in split.into]
        if not weight.shape:
            raise ValueError(f"{name} is a single number: it cannot be split")
        sizes = split.sizes or _sizes_by_shapes(names, weight.shape[0], weights)
        if sizes is None or sum(sizes) != weight.shape[0] or len(sizes) != len(names):
            wanted = "unknown sizes" if sizes is None else "+".join(map(str, sizes))
            raise ValueError(
                f"{name} has {weight.shape[0]} rows, to be split into {wanted} for "
                f"{', '.join(names)}; give their rows as sizes"
            )
        start = 0
        for part, count in zip(names, sizes, strict=True):
            _put(result, part, weight.rows(start, count))
            start += count
    return result


# Whose columns say how many rows a projection of the same module has.
_COUNTERPARTS = {"in_proj": "out_proj", "gate_proj": "down_proj", "up_proj": "down_proj"}


def _sizes_by_shapes(
    names: list[str], rows: int, weights: Mapping[str, Weight]
) -> tuple[int, ...] | None:
    """Rows of the parts, as far as their counterparts tell; one may take what is left."""
    sizes: list[int | None] = []
    for name in names:
        module, _, rest = name.removesuffix(".weight").rpartition(".")
        counterpart = weights.get(f"{module}.{_COUNTERPARTS.get(rest, '')}.weight")
        one = rest in ("w_eta", "w_mu")
        sizes.append(1 if one else counterpart.shape[-1] if counterpart else None)
    if sizes.count(None) > 1:
        return None
    left = rows - sum(size or 0 for size in sizes)
    if None in sizes and left < 1:
        return None
    return tuple(left if size is None else size for size in sizes)


def _concat(weights: dict[str, Weight], concat: Concat) -> dict[str, Weight]:
    result: dict[str, Weight] = {}
    groups: dict[str, dict[int, tuple[str, Weight]]] = {}
    for name, weight in weights.items():
        for i, pattern in enumerate(concat.match):
            if pattern.search(name):
                whole = pattern.sub(concat.into, name, count=1)
                found = groups.setdefault(whole, {})
                if i in found:
                    raise ValueError(f"{found[i][0]} and {name} are both part {i + 1} of {whole}")
                found[i] = name, weight
                break
        else:
            _put(result, name, weight)
    for whole, found in groups.items():
        missing = [p.pattern for i, p in enumerate(concat.match) if i not in found]
        if missing:
            names = ", ".join(name for name, _ in found.values())
            raise ValueError(f"{whole} is made of {names} and nothing matches {missing[0]!r}")
        parts = [found[i][1] for i in range(len(concat.match))]
        if len({part.as_rows.shape[1:] for part in parts}) != 1:
            shapes = ", ".join(f"{name} {weight.shape}" for name, weight in found.values())
            raise ValueError(f"{whole} cannot be made of {shapes}: their columns differ")
        _put(result, whole, joined(parts))
    return result


def read_key_map(path: Path) -> KeyMap:
    """A key map from a JSON or TOML file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a key map; the message says which entry, and why.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no key map at {path}")
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:
        kind = "TOML" if path.suffix == ".toml" else "JSON"
        raise ValueError(f"{path} is not {kind}: {error}") from error
    return key_map(str(path), content)


def key_map(name: str, content: Any) -> KeyMap:
    """A key map from plain data.

    Raises:
        ValueError: as `read_key_map`.
    """
    steps = ("ignore", "transpose", "rename", "split", "concat")
    if not isinstance(content, dict):
        raise ValueError(f"{name} holds a {type(content).__name__}; allowed is an object")
    if unknown := sorted(set(content) - set(steps)):
        raise ValueError(f"{name} has {unknown[0]!r}; allowed are {', '.join(steps)}")
    parsers = {
        "ignore": _pattern,
        "transpose": _pattern,
        "rename": _rename,
        "split": _parse_split,
        "concat": _parse_concat,
    }
    parsed = {}
    for step, entries in content.items():
        if not isinstance(entries, list):
            raise ValueError(f"{step} in {name} is a {type(entries).__name__}; allowed is a list")
        where = [f"{step} {i} in {name}" for i in range(1, len(entries) + 1)]
        parsed[step] = tuple(map(parsers[step], entries, where))
    return KeyMap(name, **parsed)


def _pattern(text: Any, where: str) -> re.Pattern:
    if not isinstance(text, str):
        raise ValueError(f"{where} is {text!r}; allowed is a regular expression")
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"{where}: {text!r} is not a regular expression: {error}") from error


def _replacement(pattern: re.Pattern, text: Any, where: str) -> str:
    """A replacement whose references are groups of the pattern."""
    if not isinstance(text, str):
        raise ValueError(f"{where}: {text!r}; allowed is a name")
    try:
        # an alternative that matches everything, with the pattern's groups unmatched
        re.compile(f"(?:{pattern.pattern})|").sub(text, "")
    except (re.error, IndexError) as error:
        raise ValueError(f"{where}: {text!r} does not fit {pattern.pattern!r}: {error}") from error
    return text


def _rename(entry: Any, where: str) -> tuple[re.Pattern, str]:
    if not isinstance(entry, list) or len(entry) != 2:
        raise ValueError(f"{where} is {entry!r}; allowed is [pattern, replacement]")
    pattern = _pattern(entry[0], where)
    return pattern, _replacement(pattern, entry[1], where)


def _fields(entry: Any, where: str, required: set[str], optional: set[str]) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {entry!r}; allowed is an object")
    for key in sorted(required - set(entry)):
        raise ValueError(f"{where} has no {key}")
    for key in sorted(set(entry) - required - optional):
        raise ValueError(
            f"{where} has {key!r}; allowed are {', '.join(sorted(required | optional))}"
        )
    return entry


def _parse_split(entry: Any, where: str) -> Split:
    fields = _fields(entry, where, {"match", "into"}, {"sizes"})
    match = _pattern(fields["match"], where)
    if not isinstance(fields["into"], list) or len(fields["into"]) < 2:
        raise ValueError(f"{where}: into is {fields['into']!r}; allowed is a list of names")
    into = tuple(_replacement(match, name, where) for name in fields["into"])
    sizes = fields.get("sizes")
    if sizes is not None and not (
        isinstance(sizes, list)
        and len(sizes) == len(into)
        and all(type(size) is int and size > 0 for size in sizes)
    ):
        raise ValueError(f"{where}: sizes is {sizes!r}; allowed are {len(into)} numbers of rows")
    return Split(match, into, None if sizes is None else tuple(sizes))


def _parse_concat(entry: Any, where: str) -> Concat:
    fields = _fields(entry, where, {"match", "into"}, set())
    if not isinstance(fields["match"], list) or len(fields["match"]) < 2:
        raise ValueError(f"{where}: match is {fields['match']!r}; allowed is a list of patterns")
    match = tuple(_pattern(text, where) for text in fields["match"])
    for pattern in match:
        _replacement(pattern, fields["into"], where)
    return Concat(match, fields["into"])
