"""Memories by name: kept in this process, and in a folder if there is one."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fm_mlx.memory import Memory
from fm_mlx.model import Model, shown
from fm_mlx.serving.requests import Refused

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_SUFFIX = ".memory"


@dataclass(frozen=True)
class Named:
    """A memory that prompts go on from.

    Attributes:
        memory: The memory.
        root: Names it in the store of prefixes, as no other.
    """

    memory: Memory
    root: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    @property
    def has_read(self) -> bool:
        """Whether it has read anything."""
        return self.memory.tokens_seen > 0


class NamedMemories:
    """The memories of a server; used by the thread of its event loop alone.

    Args:
        model: the model that is served.
        tokenizer: its tokenizer.
        most: how many memories there may be.
        folder: where memories are kept as files NAME.memory; those in it are loaded. None: they
            are gone when the server stops.

    Attributes:
        nothing: The memory that has read nothing; it has no name.

    Raises:
        ValueError: a file in the folder is no memory of this model, or has no name for one.
    """

    def __init__(self, model: Model, tokenizer: Any, most: int, folder: Path | None = None):
        self.nothing = Named(Memory.empty(model, tokenizer))
        self._most = most
        self._folder = folder
        self._memories: dict[str, Named] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(folder.glob(f"*{_SUFFIX}")):
                if not path.name.startswith("."):  # what a killed server was writing
                    self.add_file(path.name.removesuffix(_SUFFIX), path)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._memories))

    def __contains__(self, name: object) -> bool:
        return name in self._memories

    def add_file(self, name: str, path: Path) -> None:
        """Load a memory under a name that is not taken.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no memory of this model, or the name is taken or is none.
        """
        memory = Memory.load(path)
        memory.identity.check(self.nothing.memory.identity, str(path))
        if name in self:
            raise ValueError(f"{path}: there is another memory {name}")
        try:
            self.put(name, memory)
        except Refused as error:
            raise ValueError(f"{path}: {error}") from error

    def named(self, name: str) -> Named:
        """The memory of a name, and how the store of prefixes knows it.

        Raises:
            Refused: there is none.
        """
        if name not in self._memories:
            raise Refused(404, f"there is no memory {shown(name)}")
        return self._memories[name]

    def get(self, name: str) -> Memory:
        """The memory of a name.

        Raises:
            Refused: there is none.
        """
        return self.named(name).memory

    def put(self, name: str, memory: Memory) -> None:
        """Keep a memory under a name, in this process; what had the name before is replaced.

        Raises:
            Refused: as `check_name`.
        """
        self.check_name(name)
        self._memories[name] = Named(memory)

    def check_name(self, name: str) -> None:
        """Raise unless a memory can be kept under this name.

        Raises:
            Refused: the name is none, or is another one on some file systems, or there are too
                many memories.
        """
        if not _NAME.fullmatch(name):
            raise Refused(
                400,
                f"name is {shown(name)}; allowed are 1 to 64 letters, digits, dots, hyphens and "
                "underscores, with no dot in front",
            )
        if name in self:
            return
        if alike := [other for other in self if other.lower() == name.lower()]:
            raise Refused(409, f"there is a memory {alike[0]}: {name} could be the same file")
        if len(self._memories) >= self._most:
            raise Refused(413, f"there are {len(self._memories)} memories: delete one")

    async def save(self, name: str) -> None:
        """Write a memory to the folder, if there are both."""
        if self._folder is not None and name in self:
            await asyncio.to_thread(self.get(name).save, self._path(name))

    def delete(self, name: str) -> None:
        """Forget a memory, its file in the folder included.

        Raises:
            Refused: there is none of this name.
        """
        self.named(name)
        del self._memories[name]
        if self._folder is not None:
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        assert self._folder is not None and _NAME.fullmatch(name)
        return self._folder / f"{name}{_SUFFIX}"
