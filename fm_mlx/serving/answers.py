"""Answers in the forms of OpenAI's interface."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from fm_mlx.memory import Memory
from fm_mlx.serving.engine import Ended

DONE = "data: [DONE]\n\n"


class Form:
    """The form of the answer to one request: whole, or in chunks.

    Args:
        chat: a message, or the text alone.
        model: the name of the model that was asked for.
    """

    def __init__(self, chat: bool, model: str):
        self._chat = chat
        kind = "chat.completion" if chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }
        self._whole = kind
        self._part = f"{kind}.chunk" if chat else kind

    def whole(self, text: str, ended: Ended, prompt_tokens: int) -> dict[str, Any]:
        """The answer as one object."""
        content = {"message": {"role": "assistant", "content": text}} if self._chat else None
        choice = self._choice(content or {"text": text}, ended.reason)
        usage = _usage(ended, prompt_tokens)
        return {**self._head, "object": self._whole, "choices": [choice], "usage": usage}

    def begin(self) -> str:
        """What comes before the first text: in a chat the role, else nothing."""
        if not self._chat:
            return ""
        return self._chunk([self._choice({"delta": {"role": "assistant", "content": ""}}, None)])

    def text(self, text: str) -> str:
        """A chunk with some text."""
        content = {"delta": {"content": text}} if self._chat else {"text": text}
        return self._chunk([self._choice(content, None)])

    def end(self, ended: Ended) -> str:
        """The chunk that says why the text ended."""
        content = {"delta": {}} if self._chat else {"text": ""}
        return self._chunk([self._choice(content, ended.reason)])

    def usage(self, ended: Ended, prompt_tokens: int) -> str:
        """The chunk with the figures."""
        return self._chunk([], usage=_usage(ended, prompt_tokens))

    def _choice(self, content: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return {"index": 0, **content, "logprobs": None, "finish_reason": reason}

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> str:
        return event({**self._head, "object": self._part, "choices": choices, **more})


def event(content: dict[str, Any]) -> str:
    """An event of a stream."""
    return f"data: {json.dumps(content)}\n\n"


def error_content(message: str, status: int) -> dict[str, Any]:
    """The object that says why there is no answer, in one line."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    line = " ".join(message.split())
    return {"error": {"message": line, "type": kind, "param": None, "code": None}}


def error(message: str, status: int, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer to a request that is refused or failed."""
    return JSONResponse(error_content(message, status), status, headers)


def described(name: str, memory: Memory) -> dict[str, Any]:
    """What is said of a memory."""
    return {
        "id": name,
        "object": "memory",
        "tokens": memory.tokens_seen,
        "bytes": memory.nbytes,
        "texts": [
            {
                "name": text.name,
                "tokens": text.tokens,
                "bytes": text.bytes,
                "sha256": text.sha256,
                "complete": text.complete,
                "read_at": text.read_at,
            }
            for text in memory.texts
        ],
    }


def _usage(ended: Ended, prompt_tokens: int) -> dict[str, Any]:
    """The figures: cached tokens were not read again."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": ended.completion_tokens,
        "total_tokens": prompt_tokens + ended.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": ended.cached_tokens},
    }
