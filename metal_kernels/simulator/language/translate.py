"""Metal source as C++ that clang compiles for the host, after the headers in include/."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from . import copies, dialect, structures
from .includes import with_mlx_headers
from .refusals import NotSimulated, refuse
from .source import KernelSource, Parameter
from .structures import Structures
from .tokens import Token, rewrite, tokenize

_POSITION = "uint3{{thread->{0}[0], thread->{0}[1], thread->{0}[2]}}"

# What a thread attribute of Metal is, from a msl_thread (include/msl_runtime.h).
THREAD_ATTRIBUTES = {
    "dispatch_quadgroups_per_threadgroup": (
        "(thread->dispatch_threads_per_threadgroup[0]"
        " * thread->dispatch_threads_per_threadgroup[1]"
        " * thread->dispatch_threads_per_threadgroup[2] + 3) / 4"
    ),
    "dispatch_simdgroups_per_threadgroup": "thread->dispatch_simdgroups",
    "dispatch_threads_per_threadgroup": _POSITION.format("dispatch_threads_per_threadgroup"),
    "grid_origin": "uint3{0, 0, 0}",
    "grid_size": _POSITION.format("threads_per_grid"),
    "quadgroup_index_in_threadgroup": "thread->index_in_threadgroup / 4",
    "quadgroups_per_threadgroup": (
        "(thread->threads_per_threadgroup[0] * thread->threads_per_threadgroup[1]"
        " * thread->threads_per_threadgroup[2] + 3) / 4"
    ),
    "simdgroup_index_in_threadgroup": "thread->simdgroup",
    "simdgroups_per_threadgroup": "thread->simdgroups",
    "thread_execution_width": "32u",
    "thread_index_in_quadgroup": "thread->lane % 4",
    "thread_index_in_simdgroup": "thread->lane",
    "thread_index_in_threadgroup": "thread->index_in_threadgroup",
    "thread_position_in_grid": _POSITION.format("position_in_grid"),
    "thread_position_in_threadgroup": _POSITION.format("position_in_threadgroup"),
    "threadgroup_position_in_grid": _POSITION.format("threadgroup_position"),
    "threadgroups_per_grid": _POSITION.format("threadgroups_per_grid"),
    "threads_per_grid": _POSITION.format("threads_per_grid"),
    "threads_per_simdgroup": "32u",
    "threads_per_threadgroup": _POSITION.format("threads_per_threadgroup"),
}


def translate(source: KernelSource) -> str:
    """A C++ translation unit with the function ``msl_entry``, which runs one thread.

    Line numbers count from the first line of the user's header ("header") and of the
    user's source ("source").

    Raises:
        ValueError: if the kernel takes an attribute that the simulator does not know, or the
            text has something that is not simulated.
    """
    with _told_where("header"):
        _refuse(source.header)
        header = with_mlx_headers(source.header)
    # the body begins with the line break that MLX puts before the user's source
    with _told_where("source", before=1):
        _refuse(source.body)
    known = Names.of("\n".join((header, source.signature, source.body)), source.signature)
    header, body = (cpp(text, known) for text in (header, source.body))
    # what private variables a function is given by address can be followed where it is inlined
    inlined = "#pragma clang attribute push(__attribute__((always_inline)), apply_to = function)"
    return (
        f'{inlined}\n#line 1 "header"\n{header}\n#pragma clang attribute pop\n'
        f'#line 1 "signature"\n{source.signature}\n'
        # the body begins with the line break that MLX puts before the user's source
        f'#line 0 "source"\n{body}\n'
        f"{_entry(source)}"
    )


@dataclass(frozen=True)
class Names:
    """What a whole text declares, which the rewriting of its parts needs.

    Attributes:
        vectors: Names that it gives to vectors.
        structures: Its structures and what is of their types.
    """

    vectors: frozenset[str] = frozenset()
    structures: Structures = field(default_factory=Structures)

    @classmethod
    def of(cls, text: str, signature: str = "") -> Names:
        tokens = tokenize(text)
        return cls(
            dialect.vector_aliases(tokens), structures.structures(tokens, tokenize(signature))
        )


def cpp(text: str, known: Names | None = None) -> str:
    """Metal text rewritten where C++ says it in another way; `known` is of all of it."""
    known = known or Names.of(text)
    for rewriting in (*_structure_rewritings(known.structures), _in_dialect(known)):
        text = rewrite(text, rewriting(tokenize(text)))
    return text


Rewriting = Callable[[Sequence[Token]], Iterator[dialect.Edit]]


def _structure_rewritings(known: Structures) -> list[Rewriting]:
    """One after another: each rewrites what those before it have written."""
    if not known.types:
        return []
    return [
        structures.qualified_methods,
        lambda tokens: copies.method_calls(tokens, known),
        lambda tokens: copies.elements(tokens, known),
        lambda tokens: copies.assignments(tokens, known),
        lambda tokens: copies.values(tokens, known),
        structures.members,
    ]


def _in_dialect(known: Names) -> Rewriting:
    """All of dialect.py at once."""

    def rewriting(tokens: Sequence[Token]) -> Iterator[dialect.Edit]:
        for edits in (
            dialect.threadgroup_attributes,
            dialect.function_constants,
            dialect.loggers,
            dialect.complex_constants,
            dialect.array_parameters,
            lambda tokens: dialect.static_variables(tokens, known.structures.classes),
            dialect.half_casts,
            dialect.bfloat_literals,
        ):
            yield from edits(tokens)
        # a comparison in the brackets of a constructor may begin with another one
        yield from dialect.truths(tokens, known.vectors)
        yield from dialect.constructors(tokens, known.vectors)

    return rewriting


def _refuse(text: str) -> None:
    tokens = tokenize(text)
    refuse(tokens)
    structures.check_methods(tokens)


@contextmanager
def _told_where(file: str, before: int = 0) -> Iterator[None]:
    """Say the file and the line of what is not simulated; `before` lines are not the user's."""
    try:
        yield
    except NotSimulated as refused:
        line = refused.line - before
        raise ValueError(f"{file}:{line}: {refused.what} are not simulated") from None


def _entry(source: KernelSource) -> str:
    arguments, buffers = [], 0
    for parameter in source.parameters:
        if parameter.attribute == "buffer":
            arguments.append(_buffer(parameter, buffers))
            buffers += 1
        elif parameter.attribute in THREAD_ATTRIBUTES:
            arguments.append(THREAD_ATTRIBUTES[parameter.attribute])
        else:
            raise ValueError(f"the simulator does not know the attribute {parameter.attribute}")
    call = f"{source.name}{source.template}({', '.join(arguments)});"
    # `thread` is a Metal keyword, which the headers define away
    return (
        '#line 1 "entry"\n#undef thread\n'
        'extern "C" void msl_entry(void** buffers, const msl_thread* thread) {\n'
        f"  {call}\n}}\n"
    )


def _buffer(parameter: Parameter, index: int) -> str:
    if parameter.is_reference:
        return f"*({parameter.type[:-1]}*)buffers[{index}]"
    return f"({parameter.type})buffers[{index}]"
