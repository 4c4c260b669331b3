"""Metal source as C++ that clang compiles for the host, after the headers in include/."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .source import KernelSource, Parameter
from .tokens import Token, matching, rewrite, template_end, tokenize

Edit = tuple[int, int, str]

_SCALARS = ("bool", "char", "uchar", "short", "ushort", "int", "uint", "long", "ulong")
_VECTORS = {f"{scalar}{n}" for scalar in (*_SCALARS, "half", "float", "bfloat") for n in (2, 3, 4)}

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
        ValueError: if the kernel takes an attribute that the simulator does not know.
    """
    aliases = _vector_aliases(tokenize(source.header + source.body))
    header, body = (cpp(text, aliases) for text in (source.header, source.body))
    return (
        f'#line 1 "header"\n{header}\n'
        f'#line 1 "signature"\n{source.signature}\n'
        # the body begins with the line break that MLX puts before the user's source
        f'#line 0 "source"\n{body}\n'
        f"{_entry(source)}"
    )


def cpp(text: str, aliases: frozenset[str] = frozenset()) -> str:
    """Metal text rewritten where C++ says it in another way."""
    tokens = tokenize(text)
    edits = [
        *_static_threadgroup_variables(tokens),
        *_vector_constructors(tokens, aliases),
        *_bfloat_literals(tokens),
        *_array_parameters(tokens),
    ]
    return rewrite(text, edits)


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


def _static_threadgroup_variables(tokens: Sequence[Token]) -> Iterator[Edit]:
    """``threadgroup T x[n];`` in a function: one variable for all threads of a threadgroup.

    Initialised with ``{}``, because clang calls no constructor in another address space; the
    runtime overwrites it for every threadgroup, so the optimiser must not rely on it: "used"
    keeps it from folding a variable that nobody writes.
    """
    for i, token in enumerate(tokens):
        begins = i == 0 or tokens[i - 1].text in (";", "{", "}")
        if token.text == "threadgroup" and begins and (ends := _declarator_ends(tokens, i)):
            yield token.start, token.start, "static __attribute__((used)) "
            for end in ends:
                yield end, end, " = {}"


def _declarator_ends(tokens: Sequence[Token], at: int) -> list[int]:
    """Offsets behind the variables of a declaration; none if it declares no variable."""
    ends = []
    i = at
    while i < len(tokens):
        text = tokens[i].text
        if text in ("*", "&", "(", "="):
            return []
        if text in (";", ","):
            ends.append(tokens[i - 1].end)
        if text == ";":
            return ends
        if text == "[":
            i = matching(tokens, i)
        elif text == "<":
            i = template_end(tokens, i)
        i += 1
    return []


def _vector_constructors(tokens: Sequence[Token], aliases: frozenset[str]) -> Iterator[Edit]:
    """``float4(a, b)``: clang's vectors have no constructors, include/ has a function."""
    for i, token in enumerate(tokens[:-1]):
        if i and tokens[i - 1].text in ("::", "operator", "."):
            continue
        end = i
        if token.text == "metal" and tokens[i + 1].text == "::" and i + 3 < len(tokens):
            end = i + 2
        if tokens[end].text == "vec" and tokens[end + 1].text == "<":
            end = template_end(tokens, end + 1)
        elif tokens[end].text not in _VECTORS and tokens[end].text not in aliases:
            continue
        if end + 1 < len(tokens) and tokens[end + 1].text == "(":
            yield token.start, token.start, "metal::msl_make<"
            yield tokens[end].end, tokens[end].end, ">"


def _vector_aliases(tokens: Sequence[Token]) -> frozenset[str]:
    """Names that ``using V = vec<...>`` or ``typedef vec<...> V`` gives to vectors."""
    names = set()
    for i in range(len(tokens) - 4):
        if tokens[i].text == "using" and tokens[i + 2].text == "=":
            at = i + (5 if tokens[i + 3].text == "metal" else 3)
            if tokens[at].text == "vec" or tokens[at].text in _VECTORS:
                names.add(tokens[i + 1].text)
        elif tokens[i].text == "typedef":
            at = i + (3 if tokens[i + 1].text == "metal" else 1)
            if tokens[at].text == "vec" and tokens[at + 1].text == "<":
                names.add(tokens[template_end(tokens, at + 1) + 1].text)
    return frozenset(names)


def _bfloat_literals(tokens: Sequence[Token]) -> Iterator[Edit]:
    """``1.5bf``: clang has no such suffix."""
    for token in tokens:
        if token.kind == "number" and token.text.endswith("bf") and token.text[:2] != "0x":
            yield token.start, token.end, f"bfloat({float(token.text[:-2])}f)"


def _array_parameters(tokens: Sequence[Token]) -> Iterator[Edit]:
    """``constant const int64_t strides[2]`` as a parameter: clang wants the pointer."""
    for i in range(1, len(tokens) - 3):
        name, opened, size, closed = tokens[i : i + 4]
        if name.kind == "name" and (opened.text, closed.text) == ("[", "]"):
            first = i
            while first and tokens[first - 1].text not in ("(", ",", ";", "{", "}"):
                first -= 1
            parameter = first and tokens[first - 1].text in ("(", ",")
            if parameter and tokens[first].text == "constant" and size.kind == "number":
                yield name.start, closed.end, f"* {name.text}"
