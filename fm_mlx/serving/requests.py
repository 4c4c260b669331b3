"""Requests, checked field by field; a bad one is refused in one line."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeGuard

from fm_mlx.model import shown

# What may be asked for at most.
_MOST_STOPS = 16
_LONGEST_STOP = 1000
_MOST_BIASES = 1024


class Refused(Exception):
    """A request that is not answered, with the status that says so."""

    def __init__(self, status: int, message: str):
        super().__init__(" ".join(message.split()))
        self.status = status


@dataclass(frozen=True)
class Asked:
    """What is asked for, of any kind of completion.

    Attributes:
        prompt: Text or token ids; None in a chat.
        messages: The messages of a chat.
        model: The name that was given; None stands for the model that is served.
        memory: The name of the memory to go on from.
        options: The other fields by their names, defaults filled in.
    """

    prompt: str | list[int] | None
    messages: list[dict[str, Any]] | None
    model: str | None
    memory: str | None
    options: dict[str, Any]


@dataclass(frozen=True)
class _Field:
    """A field of a request: what it is without a word, and which values are allowed."""

    default: Any
    is_good: Callable[[Any], bool]
    allowed: str


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(default: float | None, least: float, most: float) -> _Field:
    return _Field(
        default,
        lambda value: _is_number(value) and least <= value <= most,
        f"a number from {least:g} to {most:g}",
    )


def _whole(default: int | None, least: int, most: int) -> _Field:
    return _Field(
        default,
        lambda value: (
            isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        ),
        f"a whole number from {least} to {most}",
    )


def _flag(default: bool) -> _Field:
    return _Field(default, lambda value: isinstance(value, bool), "true or false")


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and _is_unicode(value)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _is_stop(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return (
        isinstance(texts, list)
        and len(texts) <= _MOST_STOPS
        and all(_is_text(text) and 1 <= len(text) <= _LONGEST_STOP for text in texts)
    )


def _is_bias(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= _MOST_BIASES
        and all(key.isdecimal() and len(key) < 10 for key in value)
        and all(_is_number(bias) and abs(bias) <= 100 for bias in value.values())
    )


_OPTIONS = {
    "temperature": _number(None, 0, 100),
    "top_p": _number(None, 0, 1),
    "min_p": _number(None, 0, 1),
    "top_k": _whole(None, 0, 2**31 - 1),
    "seed": _whole(None, -(2**63), 2**63 - 1),
    "max_tokens": _whole(None, 1, 2**31 - 1),
    "max_completion_tokens": _whole(None, 1, 2**31 - 1),
    "repetition_penalty": _number(None, 0.01, 100),
    "presence_penalty": _number(None, -2, 2),
    "frequency_penalty": _number(None, -2, 2),
    "logit_bias": _Field(None, _is_bias, f"{_MOST_BIASES} token ids with numbers to 100, at most"),
    "stop": _Field(
        None, _is_stop, f"a text or {_MOST_STOPS} texts of 1 to {_LONGEST_STOP} characters"
    ),
    "stream": _flag(False),
}

# Fields of OpenAI's that would change the answer, and the values with which they do not.
_NOT_SERVED = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "adapters": (),
    "draft_model": (),
}


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body.

    Raises:
        Refused: it holds something else.
    """

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no number of JSON")

    try:
        content = json.loads(body, parse_constant=constant)
    except RecursionError:
        raise Refused(400, "the body is nested too deeply") from None
    except ValueError as error:
        raise Refused(400, f"the body is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise Refused(400, f"the body is a {type(content).__name__}; allowed is an object")
    return content


def asked(content: dict[str, Any], *, chat: bool) -> Asked:
    """The fields of a request for a completion, checked.

    Raises:
        Refused: names a field, its value and what is allowed.
    """
    for name, harmless in _NOT_SERVED.items():
        value = content.get(name)
        # 1 and True are equal, and not the same
        if value is not None and (type(value), value) not in [(type(x), x) for x in harmless]:
            raise Refused(400, f"{name} is {shown(value)}; this is not served")
    options = {name: _checked(content, name, field) for name, field in _OPTIONS.items()}
    include = content.get("stream_options")
    if include is not None and not isinstance(include, dict):
        raise Refused(400, f"stream_options is {shown(include)}; allowed is an object")
    options["include_usage"] = _checked(include or {}, "include_usage", _flag(False))
    if options["seed"] is None:
        options["seed"] = secrets.randbits(32)
    stop = options["stop"]
    options["stop"] = [stop] if isinstance(stop, str) else stop or []
    options["max_tokens"] = options.pop("max_completion_tokens") or options["max_tokens"]
    name = _Field(None, lambda value: _is_text(value) and bool(value), "a text, not empty")
    return Asked(
        None if chat else _prompt(content),
        _messages(content) if chat else None,
        _checked(content, "model", name),
        _checked(content, "memory", name),
        options,
    )


def text_field(content: dict[str, Any], name: str, most: int, *, needed: bool = True) -> str:
    """A field that is a text of 1 to `most` characters; "" if it is absent and not needed.

    Raises:
        Refused: it is something else.
    """
    value = content.get(name)
    if value is None and not needed:
        return ""
    if _is_text(value) and 1 <= len(value) <= most:
        return value
    raise Refused(400, f"{name} is {shown(value)}; allowed is a text of 1 to {most} characters")


def flag_field(content: dict[str, Any], name: str) -> bool:
    """A field that is true or false; false if it is absent.

    Raises:
        Refused: it is something else.
    """
    return _checked(content, name, _flag(False))


def _checked(content: dict[str, Any], name: str, field: _Field) -> Any:
    value = content.get(name)
    if value is None:
        return field.default
    if not field.is_good(value):
        raise Refused(400, f"{name} is {shown(value)}; allowed is {field.allowed}")
    return value


def _prompt(content: dict[str, Any]) -> str | list[int]:
    prompt = content.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        (prompt,) = prompt  # a batch of one
    if isinstance(prompt, str) and prompt and _is_unicode(prompt):
        return prompt
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return prompt
    raise Refused(
        400, f"prompt is {shown(prompt)}; allowed is a text or a list of token ids, not empty"
    )


def _messages(content: dict[str, Any]) -> list[dict[str, Any]]:
    messages = content.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused(400, f"messages is {shown(messages)}; allowed is a list of objects")
    return [_message(message) for message in messages]


def _message(message: Any) -> dict[str, Any]:
    """A message whose content is one text, of the parts that it may come in."""
    if isinstance(message, dict) and _is_text(message.get("role")):
        parts = message.get("content")
        if parts is None or isinstance(parts, str):
            parts = [{"type": "text", "text": parts or ""}]
        if isinstance(parts, list) and all(
            isinstance(part, dict) and part.get("type") == "text" and _is_text(part.get("text"))
            for part in parts
        ):
            return {"role": message["role"], "content": "".join(part["text"] for part in parts)}
    raise Refused(
        400, f"a message is {shown(message)}; allowed is a role and a content, both of them text"
    )
