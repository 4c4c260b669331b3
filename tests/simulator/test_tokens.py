"""The tokenizer, and what is built on it: rewriting, and reading MLX's generated source."""

from __future__ import annotations

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fm_mlx.metal_kernels.simulator.language.source import read_source
from fm_mlx.metal_kernels.simulator.language.tokens import rewrite, tokenize
from fm_mlx.metal_kernels.simulator.language.translate import cpp
from fm_mlx.metal_kernels.simulator.mac.mlx_calls import mlx_kernel, trace

KEPT = "static __attribute__((used))"


def texts(source: str) -> list[str]:
    return [token.text for token in tokenize(source)]


def test_tokens():
    source = 'a+=1.5e-3f; // threadgroup x;\n[[buffer(0)]] x->y "a;\\"b" /* { */ 0x1Fu .5h v<T>>'
    assert texts(source) == [
        *("a", "+=", "1.5e-3f", ";", "[[", "buffer", "(", "0", ")", "]]", "x", "->", "y"),
        *('"a;\\"b"', "0x1Fu", ".5h", "v", "<", "T", ">", ">"),
    ]
    assert [token.line for token in tokenize("a\n\n/*\n*/b")] == [1, 4]


@given(st.text(alphabet='ab1.e-+(){}[]<>"\\/* \n;,_', max_size=60))
def test_tokens_are_where_they_say(source):
    last = 0
    for token in tokenize(source):
        assert source[token.start : token.end] == token.text
        assert token.start >= last
        assert token.line == source.count("\n", 0, token.start) + 1
        last = token.end


def test_rewriting_keeps_everything_else():
    assert rewrite("a bb c", [(2, 4, "x"), (0, 0, "<"), (1, 1, ">")]) == "<a> x c"


@pytest.mark.parametrize(
    ("metal", "wanted"),
    [
        ("threadgroup float s[4], t[2];", f"{KEPT} threadgroup float s[4] = {{}}, t[2] = {{}};"),
        ("threadgroup T<2, 3> s;", f"{KEPT} threadgroup T<2, 3> s = {{}};"),
        ("threadgroup float* p = s;", "threadgroup float* p = s;"),
        ("void f(threadgroup float* p, int n);", "void f(threadgroup float* p, int n);"),
        ("// threadgroup float s[4];", "// threadgroup float s[4];"),
        ("x = float4(a, b);", "x = metal::msl_make<float4>(a, b);"),
        ("x = metal::vec<T, 4>(a);", "x = metal::msl_make<metal::vec<T, 4>>(a);"),
        ("as_type<vec<T, 4>>(a)", "as_type<vec<T, 4>>(a)"),
        ("static_cast<float4>(a)", "static_cast<float4>(a)"),
        ("float4 a = b; s.float4(c);", "float4 a = b; s.float4(c);"),
        ("x = 1.5bf + 2bf + 0x1bf;", "x = bfloat(1.5f) + bfloat(2.0f) + 0x1bf;"),
        ("f(constant const int64_t strides[2])", "f(constant const int64_t * strides)"),
        ("threadgroup int s[2]; s[0] = a[1];", f"{KEPT} threadgroup int s[2] = {{}}; s[0] = a[1];"),
    ],
)
def test_metal_as_cpp(metal, wanted):
    assert cpp(metal) == wanted


def test_reading_what_mlx_generates():
    make = {
        "name": "t",
        "input_names": ["a", "b", "s"],
        "output_names": ["o"],
        "header": "// h { ( [[kernel]]\nconstant int N = 3;\n",
        "source": "uint i = thread_position_in_grid.x; o[i] = a[i] + b_shape[0] + s; // }",
    }
    call = {
        "inputs": [mx.zeros((8, 2)), mx.zeros((4,), mx.int32), mx.array(3)],
        "output_shapes": [(8,)],
        "output_dtypes": [mx.bfloat16],
        "grid": (8, 1, 1),
        "threadgroup": (8, 1, 1),
        "template": [("T", mx.float16), ("M", -3), ("F", True)],
    }
    source = read_source(trace(mlx_kernel(make), call).text)
    assert source.header == make["header"]
    assert make["source"] in source.body
    assert source.template == "<float16_t, -3, 1>"
    assert [(p.name, p.type, p.attribute) for p in source.parameters] == [
        ("a", "const device float*", "buffer"),
        ("b", "const constant int32_t*", "buffer"),
        ("b_shape", "const constant int*", "buffer"),
        ("s", "const constant int32_t&", "buffer"),
        ("o", "device bfloat16_t*", "buffer"),
        ("thread_position_in_grid", "uint3", "thread_position_in_grid"),
    ]


def test_kernel_after_one_of_the_header():
    """MLX's own headers have kernel functions, which a custom kernel may include."""
    other = "[[kernel]] void other(device float* p [[buffer(0)]]) { p[0] = 1; }\n"
    own = "[[kernel]] void own(device float* o [[buffer(0)]]) { o[0] = 2; }\n"
    source = read_source(other + own)
    assert (source.name, source.header) == ("own", other)


def test_source_without_a_kernel():
    with pytest.raises(ValueError, match="no kernel function"):
        read_source("void f() {}")
