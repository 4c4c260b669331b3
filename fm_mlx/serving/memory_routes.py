"""The routes of the memories: read a text into one, list, show and delete them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fm_mlx.memory import Memory, Text
from fm_mlx.model import Model
from fm_mlx.serving import answers
from fm_mlx.serving.engine import Engine, Event, Failed, Reading, Remembered, told
from fm_mlx.serving.http import Places, body_of, unless_left
from fm_mlx.serving.named import NamedMemories
from fm_mlx.serving.requests import Refused, flag_field, json_object, text_field
from fm_mlx.serving.settings import Settings


class MemoryRoutes:
    """Reads texts into memories.

    Args:
        engine: reads.
        memories: the memories by name.
        model: the model.
        tokenizer: its tokenizer.
        settings: limits.
        places: of the requests that are worked on.
    """

    def __init__(
        self,
        engine: Engine,
        memories: NamedMemories,
        model: Model,
        tokenizer: Any,
        settings: Settings,
        places: Places,
    ):
        self._engine = engine
        self._memories = memories
        self._model = model
        self._tokenizer = tokenizer
        self._settings = settings
        self._places = places
        self._in_work: set[str] = set()

    async def list(self, request: Request) -> Response:
        """GET /v1/memories."""
        data = [answers.described(name, self._memories.get(name)) for name in self._memories]
        return JSONResponse({"object": "list", "data": data})

    async def show(self, request: Request) -> Response:
        """GET /v1/memories/NAME."""
        name = request.path_params["name"]
        return JSONResponse(answers.described(name, self._memories.get(name)))

    async def delete(self, request: Request) -> Response:
        """DELETE /v1/memories/NAME."""
        name = request.path_params["name"]
        self._check_free(name)
        self._memories.delete(name)
        return JSONResponse({"id": name, "object": "memory", "deleted": True})

    async def read(self, request: Request) -> Response:
        """POST /v1/memories: read a text into a new memory, or on into one.

        What was read is kept if the client leaves; the same request then goes on with it.
        """
        content = json_object(await body_of(request, self._settings.max_body))
        name = text_field(content, "name", 64)
        text = text_field(content, "text", self._settings.max_body)
        title = text_field(content, "title", 200, needed=False) or "text"
        base = text_field(content, "from", 64, needed=False)
        self._memories.check_name(name)
        self._check_free(name)
        memory = self._begun(name, base, flag_field(content, "append"))
        with ExitStack() as held:
            held.enter_context(self._places.taken())
            self._in_work.add(name)
            held.callback(self._in_work.remove, name)
            work = Reading(memory.read(self._model, self._tokenizer, text, name=title))
            events = told(work)
            self._engine.submit(work)
            try:
                memory = await unless_left(request, self._whole(name, events))
            finally:
                self._engine.cancel(work)
                await self._memories.save(name)
        return JSONResponse(answers.described(name, memory), 201)

    def _begun(self, name: str, base: str, append: bool) -> Memory:
        """The memory to go on from.

        Raises:
            Refused: there is one of this name that is not to be gone on with.
        """
        begin = self._memories.get(base) if base else self._memories.nothing.memory
        if name not in self._memories:
            return begin
        memory = self._memories.get(name)
        if append and not base:
            return memory
        # the same request again, of which a part was done
        if not _is_complete(memory) and _digests(memory.texts[:-1]) == _digests(begin.texts):
            return memory
        raise Refused(409, f"there is a memory {name}: delete it, or append to it")

    async def _whole(self, name: str, events: asyncio.Queue[Event]) -> Memory:
        """Keep each state of a memory that is being read, until all is read.

        Raises:
            Refused: the text cannot be read on, or the engine failed.
        """
        while True:
            event = await events.get()
            if isinstance(event, Failed):
                raise Refused(event.status, event.message)
            if isinstance(event, Remembered):
                self._memories.put(name, event.memory)
                if event.ended:
                    return event.memory

    def _check_free(self, name: str) -> None:
        if name in self._in_work:
            raise Refused(409, f"the memory {name} is being read")


def _is_complete(memory: Memory) -> bool:
    return not memory.texts or memory.texts[-1].complete


def _digests(texts: Sequence[Text]) -> list[tuple[str, int]]:
    return [(text.sha256, text.tokens) for text in texts]
