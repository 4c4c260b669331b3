"""The routes that generate text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

from mlx_lm.sample_utils import make_logits_processors
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fm_mlx.model import shown
from fm_mlx.serving import answers
from fm_mlx.serving.engine import Completion, Ended, Engine, Event, Failed, Read, Written, told
from fm_mlx.serving.http import EventStream, Places, body_of, unless_left
from fm_mlx.serving.named import Named, NamedMemories
from fm_mlx.serving.prompts import Prompts
from fm_mlx.serving.requests import Asked, Refused, asked, json_object
from fm_mlx.serving.sampling import sampler_for
from fm_mlx.serving.settings import Settings

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "max_tokens")
_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


class Completions:
    """Answers prompts and conversations.

    Args:
        engine: generates.
        memories: what prompts may go on from.
        prompts: makes tokens of what is asked.
        settings: limits and defaults.
        places: of the requests that are worked on.
    """

    def __init__(
        self,
        engine: Engine,
        memories: NamedMemories,
        prompts: Prompts,
        settings: Settings,
        places: Places,
    ):
        self._engine = engine
        self._memories = memories
        self._prompts = prompts
        self._settings = settings
        self._places = places

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions: go on from a text."""
        return await self._answer(request, chat=False)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions: the next message of a conversation."""
        return await self._answer(request, chat=True)

    async def _answer(self, request: Request, chat: bool) -> Response:
        content = json_object(await body_of(request, self._settings.max_body))
        want = asked(content, chat=chat)
        memory = self._memory_of(want)
        with ExitStack() as held:
            held.enter_context(self._places.taken())
            tokens = await unless_left(request, self._prompts.tokens(want, memory.has_read))
            work = self._work(want, tokens, memory)
            events = told(work)
            self._engine.submit(work)
            held.callback(self._engine.cancel, work)
            form = answers.Form(chat, want.model or self._settings.name)
            if want.options["stream"]:
                parts = _parts(events, form, len(tokens), want.options["include_usage"])
                return EventStream(parts, held.pop_all().close)
            answer = await unless_left(request, _whole(events, form, len(tokens)))
            return JSONResponse(answer)

    def _memory_of(self, want: Asked) -> Named:
        """The memory that a request names, in its model or by itself; else the empty one.

        Raises:
            Refused: there is no such model or memory, or it names two memories.
        """
        served = self._settings.name
        names = served, "default_model"
        memory = want.memory
        if want.model is not None and want.model not in names:
            model, _, memory = want.model.rpartition("@")
            if model not in names:
                raise Refused(404, f"model is {shown(want.model)}; served is {shown(served)}")
            if want.memory not in (None, memory):
                raise Refused(
                    400, f"two memories are named: {shown(memory)} and {shown(want.memory)}"
                )
        return self._memories.nothing if memory is None else self._memories.named(memory)

    def _work(self, want: Asked, tokens: list[int], memory: Named) -> Completion:
        """What the engine has to do.

        Raises:
            Refused: too many tokens are asked for, or a bias is of a token that is none.
        """
        options = {
            name: getattr(self._settings, name)
            if want.options[name] is None
            else want.options[name]
            for name in _SAMPLING
        }
        most = self._settings.most_tokens
        if options["max_tokens"] > most:
            raise Refused(400, f"max_tokens is {options['max_tokens']}; allowed are 1 to {most}")
        biases = {int(token): bias for token, bias in (want.options["logit_bias"] or {}).items()}
        self._prompts.check("logit_bias", biases)
        penalties = {name: want.options[name] for name in _PENALTIES}
        return Completion(
            tokens,
            memory.root,
            memory.memory.state,
            options["max_tokens"],
            sampler_for(
                options["temperature"],
                options["top_p"],
                options["top_k"],
                options["min_p"],
                want.options["seed"] % 2**32,
            ),
            make_logits_processors(biases or None, **penalties),
            want.options["stop"],
        )


async def _whole(
    events: asyncio.Queue[Event], form: answers.Form, prompt_tokens: int
) -> dict[str, Any]:
    """The answer as one object.

    Raises:
        Refused: the engine failed.
    """
    text: list[str] = []
    while True:
        event = await events.get()
        if isinstance(event, Written):
            text.append(event.text)
        elif isinstance(event, Failed):
            raise Refused(event.status, event.message)
        elif isinstance(event, Ended):
            return form.whole("".join(text), event, prompt_tokens)


async def _parts(
    events: asyncio.Queue[Event], form: answers.Form, prompt_tokens: int, usage: bool
) -> AsyncIterator[str]:
    """The answer as it comes; comments say how much of the prompt was read."""
    if begin := form.begin():
        yield begin
    while True:
        event = await events.get()
        if isinstance(event, Read):
            yield f": read {event.done}/{event.total}\n\n"
        elif isinstance(event, Written):
            yield form.text(event.text)
        elif isinstance(event, Failed):
            yield answers.event(answers.error_content(event.message, event.status))
            return
        elif isinstance(event, Ended):
            yield form.end(event)
            if usage:
                yield form.usage(event, prompt_tokens)
            yield answers.DONE
            return
