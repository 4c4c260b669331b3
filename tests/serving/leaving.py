"""A client that leaves, of a server in this process."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

from served import PATIENCE
from starlette.testclient import TestClient


class Leaving:
    """A request whose client is there until `leave`.

    Args:
        client: of the server; it runs.
        path: what is asked.
        body: the request; None: it never comes.
        stream: ask for a stream.
    """

    def __init__(self, client: TestClient, path: str, body: Any, stream: bool = True):
        assert client.portal is not None
        self._portal = client.portal
        self._body = body
        self._gone = self._portal.call(asyncio.Event)
        self._sent = threading.Condition()
        self._content = b""
        if body is not None:
            content = json.dumps({**body, "stream": True} if stream else body).encode()
            self._message = {"type": "http.request", "body": content, "more_body": False}
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "method": "POST",
            "path": path, "raw_path": path.encode(), "query_string": b"", "headers": [],
            "scheme": "http", "http_version": "1.1", "server": ("here", 80), "root_path": "",
        }  # fmt: skip
        self._done = self._portal.start_task_soon(client.app, scope, self._receive, self._send)

    def streams_text(self) -> None:
        """Wait for some text."""
        with self._sent:
            assert self._sent.wait_for(lambda: b'"text": "' in self._content, PATIENCE)

    def leave(self) -> None:
        """Be gone, and wait until the server has done with it."""
        self._portal.call(self._gone.set)
        self._done.result(PATIENCE)

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            self._body = None
            return self._message
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        with self._sent:
            self._content += message.get("body", b"")
            self._sent.notify_all()
