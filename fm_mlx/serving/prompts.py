"""From the words of a request to the tokens of a prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fm_mlx.chat import template_errors
from fm_mlx.model import shown
from fm_mlx.serving.requests import Asked, Refused
from fm_mlx.serving.settings import Settings
from fm_mlx.text import encode_text


class Prompts:
    """Makes prompts of what is asked, on a thread of its own: a long text takes its time.

    Args:
        tokenizer: the tokenizer, from `fm_mlx.load`.
        vocab_size: how many tokens the model knows.
        settings: the limits, and the chat template.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, settings: Settings):
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._settings = settings
        self._thread = ThreadPoolExecutor(1, "tokenizer")

    async def tokens(self, want: Asked, continued: bool) -> list[int]:
        """The tokens of the prompt or of the conversation.

        Args:
            want: what is asked.
            continued: something was read before the prompt, which is no beginning of a text.

        Raises:
            Refused: there are none or too many, or there is no chat template.
        """
        loop = asyncio.get_running_loop()
        tokens = await loop.run_in_executor(self._thread, self._encoded, want, continued)
        if not tokens:
            raise Refused(400, "the prompt is empty")
        most = self._settings.max_prompt_tokens
        if len(tokens) > most:
            raise Refused(413, f"the prompt has {len(tokens)} tokens; allowed are {most}")
        return tokens

    def check(self, name: str, tokens: Iterable[int]) -> None:
        """Raise unless the model knows all these tokens.

        Raises:
            Refused: names the first that it does not.
        """
        for token in tokens:
            if not 0 <= token < self._vocab_size:
                most = self._vocab_size - 1
                raise Refused(400, f"{name} has the token {shown(token)}; allowed are 0 to {most}")

    def _encoded(self, want: Asked, continued: bool) -> list[int]:
        if isinstance(want.prompt, list):
            self.check("prompt", want.prompt)
            return want.prompt
        if want.messages is not None:
            return encode_text(self._tokenizer, self._in_template(want.messages), False)
        return encode_text(self._tokenizer, want.prompt or "", False if continued else None)

    def _in_template(self, messages: list[dict[str, Any]]) -> str:
        template = self._settings.chat_template
        if template is None and not self._tokenizer.has_chat_template:
            raise Refused(
                400,
                "the model has no chat template: start the server with --chat-template, "
                "or use /v1/completions",
            )
        more = {} if template is None else {"chat_template": template}
        try:
            with template_errors():
                return self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, **more
                )
        except ValueError as error:
            raise Refused(400, str(error)) from error
