"""The server as an application of ASGI: its routes, and how it starts and stops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fm_mlx.model import Model, shown
from fm_mlx.serving import answers
from fm_mlx.serving.completions import Completions
from fm_mlx.serving.engine import Engine
from fm_mlx.serving.http import Places, answered
from fm_mlx.serving.memory_routes import MemoryRoutes
from fm_mlx.serving.named import NamedMemories
from fm_mlx.serving.prompts import Prompts
from fm_mlx.serving.requests import Refused
from fm_mlx.serving.settings import Settings


def application(
    model: Model, tokenizer: Any, engine: Engine, memories: NamedMemories, settings: Settings
) -> Starlette:
    """The application, to be run by uvicorn; it starts the engine and stops it.

    Args:
        model: the model that is served.
        tokenizer: its tokenizer, from `fm_mlx.load`.
        engine: generates and reads; not started.
        memories: the memories by name.
        settings: limits and defaults.
    """
    places = Places(settings.max_queue)
    prompts = Prompts(tokenizer, model.args.vocab_size, settings)
    completions = Completions(engine, memories, prompts, settings, places)
    of_memories = MemoryRoutes(engine, memories, model, tokenizer, settings, places)
    models = _Models(settings.name, memories)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.stop)

    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(settings.allowed_origins),
        allow_methods=["*"],
        allow_headers=["*"],
    )
    return Starlette(
        routes=[
            Route("/health", answered(_health)),
            Route("/v1/models", answered(models.list)),
            Route("/v1/models/{name:path}", answered(models.show)),
            Route("/v1/completions", answered(completions.complete), methods=["POST"]),
            Route("/v1/chat/completions", answered(completions.chat), methods=["POST"]),
            Route("/v1/memories", answered(of_memories.list), methods=["GET"]),
            Route("/v1/memories", answered(of_memories.read), methods=["POST"]),
            Route("/v1/memories/{name}", answered(of_memories.show), methods=["GET"]),
            Route("/v1/memories/{name}", answered(of_memories.delete), methods=["DELETE"]),
        ],
        middleware=[cors] if settings.allowed_origins else [],
        lifespan=lifespan,
        exception_handlers={HTTPException: _not_served},
    )


class _Models:
    """The model and its memories, as models."""

    def __init__(self, name: str, memories: NamedMemories):
        self._name = name
        self._memories = memories
        self._created = int(time.time())

    async def list(self, request: Request) -> Response:
        data = [self._card(name) for name in self._names()]
        return JSONResponse({"object": "list", "data": data})

    async def show(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._names():
            raise Refused(404, f"there is no model {shown(name)}")
        return JSONResponse(self._card(name))

    def _names(self) -> list[str]:
        return [self._name, *[f"{self._name}@{memory}" for memory in self._memories]]

    def _card(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "fm-mlx"}


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _not_served(request: Request, refused: Exception) -> Response:
    """A path or a method that there is not."""
    assert isinstance(refused, HTTPException)
    where = f"{request.method} {request.url.path}"
    return answers.error(f"{shown(where)} is not served", refused.status_code, refused.headers)
