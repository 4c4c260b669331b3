"""Chat templates: text that comes with a model and is run as a program, in a sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jinja2 import TemplateError

from fm_mlx.support.files import brief


@contextmanager
def template_errors(where: str = "the model") -> Iterator[None]:
    """Name a chat template that cannot be used inside a ``with`` block.

    Raises:
        ValueError: instead of whatever the template raises.
    """
    try:
        yield
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"the chat template of {where} cannot be used: {brief(error)}") from error
