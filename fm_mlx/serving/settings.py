"""What a server allows, and what it does where a request says nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """The limits and the defaults of a server.

    Attributes:
        name: The name of the model that is served.
        max_body: Bytes of a request.
        max_prompt_tokens: Tokens of a prompt.
        max_queue: Requests that are worked on or wait, at once.
        most_tokens: Tokens of an answer that a request may ask for.
        max_tokens: Tokens of an answer if the request does not say how many.
        temperature, top_p, top_k, min_p: Of the sampling, if the request does not say.
        chat_template: Is used instead of the tokenizer's; None: the tokenizer's is.
        allowed_origins: Web pages from these origins may use the server; "*" stands for all.
    """

    name: str
    max_body: int = 8 << 20
    max_prompt_tokens: int = 1 << 21
    max_queue: int = 64
    most_tokens: int = 1 << 17
    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    chat_template: str | None = None
    allowed_origins: tuple[str, ...] = ()
