"""What all routes share: bodies within limits, clients that leave, errors in one line."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from fm_mlx.serving.answers import error
from fm_mlx.serving.requests import Refused

log = logging.getLogger(__name__)

# A body that is too large is read and dropped up to so many times the limit, for a client that
# does not look at the answer before it has sent everything.
_DROPPED = 16

Result = TypeVar("Result")


class Places:
    """Counts the requests that are worked on.

    Args:
        most: how many there may be at once.
    """

    def __init__(self, most: int):
        self._most = most
        self._taken = 0

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hold a place inside a ``with`` block.

        Raises:
            Refused: there is none.
        """
        if self._taken >= self._most:
            raise Refused(429, f"{self._taken} requests are worked on: try again later")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


class EventStream(StreamingResponse):
    """Events as they come.

    Args:
        events: the lines to send.
        leave: is called in the end, also if the client left before the first event.
    """

    def __init__(self, events: AsyncIterator[str], leave: Callable[[], None]):
        super().__init__(events, media_type="text/event-stream")
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


def answered(
    route: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    """A route whose refusals and failures are answers."""

    async def answer(request: Request) -> Response:
        try:
            return await route(request)
        except Refused as refused:
            headers = {"Retry-After": "1"} if refused.status == 429 else None
            return error(str(refused), refused.status, headers)
        except ClientDisconnect:
            return Response(status_code=499)
        except RecursionError:
            return error("the request is nested too deeply", 400)
        except Exception as failure:
            log.exception("a request failed")
            return error(f"{type(failure).__name__}: {failure}", 500)

    return answer


async def body_of(request: Request, most: int) -> bytes:
    """The body of a request.

    Raises:
        Refused: it has more than `most` bytes.
    """
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size <= most:
            parts.append(part)
        elif size > _DROPPED * most:
            break
    if size > most:
        raise Refused(413, f"the request has more than {most} bytes")
    return b"".join(parts)


async def unless_left(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """What some work results in, unless the client leaves before.

    Raises:
        ClientDisconnect: it did.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
