"""mlx-lm's server, made to outlive bad requests.

Requests are checked before they reach the thread that generates, that thread goes on whatever
a request raises, and only the model that the server was started with is served.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any
from weakref import WeakSet

from mlx_lm import server
from mlx_lm.models.cache import LRUPromptCache

from fm_mlx.model import shown

# Bytes of a request's body.
_LARGEST_BODY = 64 << 20


class _PromptCache(LRUPromptCache):
    """States of earlier prompts, none of which is a whole prompt: a last token is left to read."""

    def fetch_nearest_cache(self, model: Any, tokens: list[int]) -> tuple[Any, list[int]]:
        cache, rest = super().fetch_nearest_cache(model, tokens[:-1])
        return cache, [*rest, *tokens[-1:]]


class _Generator(server.ResponseGenerator):
    """Generates for all requests, and goes on when one of them fails."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._replies: WeakSet[Queue] = WeakSet()
        super().__init__(*args, **kwargs)

    def _next_request(self, timeout: float | None = None) -> Any:
        request = super()._next_request(timeout)
        if request is not None:
            self._replies.add(request[0])
        return request

    def _tokenize(self, tokenizer: Any, request: Any, args: Any) -> Any:
        tokenized = super()._tokenize(tokenizer, request, args)
        if not len(tokenized[0]):
            raise ValueError("the prompt is empty")
        return tokenized

    def _run_generate(self) -> None:
        while not self._stop:
            try:
                self._generate()
            except Exception as error:
                logging.error(f"a request failed: {type(error).__name__}: {error}")
                # whoever waits is told
                for reply in self._replies:
                    reply.put(RuntimeError(f"{type(error).__name__}: {error}"))
                self._replies.clear()
                self._state_machine_cache.clear()


class _Handler(server.APIHandler):
    """Answers requests; a bad one gets a status of 4xx and one line."""

    def do_POST(self) -> None:
        """Check the request, and generate."""
        self._sent = False
        length = self.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) > _LARGEST_BODY:
            self.close_connection = True
            self._refuse(413, f"the request has {length} bytes; allowed are {_LARGEST_BODY}")
            return
        try:
            super().do_POST()
        except (BrokenPipeError, ConnectionError):
            pass
        except Exception as error:  # in the middle of a reply, or of what is no JSON
            logging.error(f"{self.path}: {type(error).__name__}: {error}")
            if self._sent:
                self.close_connection = True  # the reply stops where it is
            else:
                self._headers_buffer: list[bytes] = []
                self._refuse(400 if isinstance(error, ValueError) else 500, str(error))

    _sent = False

    def flush_headers(self) -> None:
        """Send the headers, after which another answer is too late."""
        self._sent = True
        super().flush_headers()

    def _refuse(self, status: int, reason: str) -> None:
        self._set_completion_headers(status)
        self.end_headers()
        self.wfile.write(json.dumps({"error": " ".join(reason.split())}).encode())

    def validate_model_parameters(self) -> None:
        """Check what mlx-lm does not look at.

        Raises:
            ValueError: names the field, its value and what is allowed.
        """
        super().validate_model_parameters()
        body = self.body
        served = ("default_model", str(self.response_generator.cli_args.model))
        if self.requested_model not in served:
            raise ValueError(f"model is {shown(self.requested_model)}; served is {served[1]}")
        for field in ("adapters", "draft_model"):
            if body.get(field) not in (None, "default_model"):
                raise ValueError(f"{field} is not served: start the server with it")
        stop = body.get("stop") or []
        if not isinstance(stop, str) and not _are(stop, str):
            raise ValueError(f"stop is {shown(stop)}; allowed is text or a list of texts")
        if self.path == "/v1/completions":
            prompt = body.get("prompt")
            if not isinstance(prompt, str) or not prompt:
                raise ValueError(f"prompt is {shown(prompt)}; allowed is text, not empty")
        else:
            messages = body.get("messages")
            if not messages or not _are(messages, dict):
                raise ValueError(f"messages is {shown(messages)}; allowed is a list of objects")
            for message in messages:
                content = message.get("content")
                if not isinstance(message.get("role"), str) or not (
                    content is None or isinstance(content, str) or _are(content, dict)
                ):
                    raise ValueError(f"a message is {shown(message)}; it needs a role and content")

    def handle_models_request(self) -> None:
        """List the model that is served."""
        path = Path(self.response_generator.cli_args.model)
        name = str(path.resolve()) if path.exists() else str(path)
        models = [{"id": name, "object": "model", "created": self.created}]
        wanted = self.path.removeprefix("/v1/models").strip("/")
        if wanted:
            models = [model for model in models if model["id"].strip("/") == wanted]
        self._set_completion_headers(200)
        self.end_headers()
        self.wfile.write(json.dumps({"object": "list", "data": models}).encode())


def _are(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


@contextmanager
def guarded() -> Iterator[None]:
    """Let `mlx_lm.server` use these classes inside a ``with`` block."""
    ours = {
        "ResponseGenerator": _Generator,
        "LRUPromptCache": _PromptCache,
        "_run_http_server": partial(server._run_http_server, handler_class=_Handler),
    }
    plain = {name: server.__dict__[name] for name in ours}
    server.__dict__.update(ours)
    try:
        yield
    finally:
        server.__dict__.update(plain)
