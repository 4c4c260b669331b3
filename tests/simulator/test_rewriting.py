"""How Metal's declarations and copies are written for clang, piece by piece."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fm_mlx.metal_kernels.simulator.language.names import Scopes
from fm_mlx.metal_kernels.simulator.language.refusals import NotSimulated, refuse
from fm_mlx.metal_kernels.simulator.language.structures import structures
from fm_mlx.metal_kernels.simulator.language.tokens import statement_starts, tokenize
from fm_mlx.metal_kernels.simulator.language.translate import Names, cpp

KEPT = "static __attribute__((used))"
S = "struct S { float a; };\n"


def rewritten(source: str, header: str = S) -> str:
    return cpp(source, Names.of(header + source))


@pytest.mark.parametrize(
    ("metal", "wanted"),
    [
        ("S t = s[1];", "S t = metal::msl_value(s[1]);"),
        ("auto t = s[1];", "auto t = metal::msl_value(s[1]);"),
        ("S t = {1};", "S t = {1};"),
        ("const device S& t = s[1];", "const device S& t = s[1];"),
        ("S a = s[0], b = s[1];", "S a = metal::msl_value(s[0]), b = metal::msl_value(s[1]);"),
        ("constant S c = {1};", "static constant S c = {1};"),
        ("device S* s; s[1] = t;", "device S* s; metal::msl_assign(s[1], metal::msl_value(t));"),
        ("device S* s; s[1].a = 3;", "device S* s; s[1].a = 3;"),
        ("device float* s; s[1] = 3;", "device float* s; s[1] = 3;"),
        ("{ S s; } s = 3;", "{ S s; } s = 3;"),
        (
            "device S* s; if (x) s[1] = {2};",
            "device S* s; if (x) metal::msl_assign(s[1],"
            " metal::msl_value_t<decltype(s [ 1 ])>{2});",
        ),
        (
            "auto s = (device S*)x; s[0] = t;",
            "auto s = metal::msl_value((device S*)x);"
            " metal::msl_assign(s[0], metal::msl_value(t));",
        ),
        ("#define L(i) S t = s[i]\nf();", "#define L(i) S t = metal::msl_value(s[i])\nf();"),
        ("S f(S v) { return g[0]; }", "S f(S v) { return metal::msl_value(g[0]); }"),
        (
            "float f(float a, S v) { return 1; } f(b, s[0]);",
            "float f(float a, S v) { return 1; } f(b, metal::msl_value(s[0]));",
        ),
    ],
)
def test_structures(metal, wanted):
    assert rewritten(metal) == wanted


@pytest.mark.parametrize(
    ("metal", "wanted"),
    [
        ("float a, b[2];", ["a", "b"]),
        ("float a = 1; uint3 b; T<int, 2> c;", ["a", "b", "c"]),
        ("float f(int x) const { return x; } float a;", ["a"]),
        ("S(float x) : a(x) {} float a; static constant int n = 3; using U = int;", ["a"]),
        ("public: float a; private: int b;", ["a", "b"]),
        ("struct In { float x; } a, b;", ["a", "b"]),
        ("device float* p; alignas(8) float a;", ["p", "a"]),
    ],
)
def test_members_are_copied_one_by_one(metal, wanted):
    text = cpp(f"struct S {{ {metal} }};")
    assert [f"metal::msl_copy(to.{name}, from.{name});" in text for name in wanted] == [True] * len(
        wanted
    )
    assert text.count("msl_copy(") - text.count("struct In") == len(wanted)


@pytest.mark.parametrize(
    "metal", ["int a : 3;", "union { float a; uint b; };", "float a;\n#if X\nint b;\n#endif\n"]
)
def test_bytes_are_copied_where_members_are_not_known(metal):
    assert "msl_copy_bytes(to, from)" in cpp(f"struct S {{ {metal} }};")


@pytest.mark.parametrize(
    ("metal", "wanted"),
    [
        ("float4 v(1, 2, 3, 4);", "float4 v = metal::msl_make<float4>(1, 2, 3, 4);"),
        ("float4 f(float4 a);", "float4 f(float4 a);"),
        ("float4 f(thread float& a);", "float4 f(thread float& a);"),
        ("float2(a == b)", "metal::msl_make<float2>(metal::msl_truth(a == b))"),
        ("float2(a < b ? 1 : 2)", "metal::msl_make<float2>(a < b ? 1 : 2)"),
        ("float2(f<a, b>(c))", "metal::msl_make<float2>(f<a, b>(c))"),
        ("x = static_cast<half>(y);", "x = metal::msl_cast<half>(y);"),
        ("x = bfloat(y);", "x = metal::msl_cast<bfloat>(y);"),
        ("float f(half x, bfloat y);", "float f(half x, bfloat y);"),
        ("threadgroup alignas(16) float s[4];",
         f"{KEPT} threadgroup __attribute__((aligned(16))) float s[4] = {{}};"),
        ("float threadgroup s[4];", f"{KEPT} float threadgroup s[4] = {{}};"),
        ("#define M(n) threadgroup float n[4]\nM(a);",
         f"#define M(n) {KEPT} threadgroup float n[4] = {{}}\nM(a);"),
        ("#endif\nthreadgroup float s[4];", f"#endif\n{KEPT} threadgroup float s[4] = {{}};"),
        ("constant float w[2] = {1, 2};", "static constant float w[2] = {1, 2};"),
        ("constant float* p = w;", "constant float* p = w;"),
        ("template <class T> constexpr constant int n = 1;",
         "template <class T> constexpr constant int n = 1;"),
        ("constant bool b [[function_constant(2)]];", "constant bool b  = {};"),
        ("constant mlx::os_log l(\"a\", \"b\");", "constant mlx::os_log l = {};"),
    ],
)  # fmt: skip
def test_declarations_and_constructors(metal, wanted):
    assert cpp(metal) == wanted


def test_member_functions_are_written_once():
    text = cpp(
        "struct S { float a; float f() const thread { return a; }\n"
        "float f() const device { return a; } };\n"
        "float g(device S* s) { return s[1].f() + s->f(); }"
    )
    assert text.count("float f()") == 1
    assert "metal::msl_value(s[1]).f() + metal::msl_value(*s).f()" in text


def test_threadgroup_variables_of_a_class_are_references_to_room():
    text = cpp("struct B { B() {} }; void f() { threadgroup B b[4], c; }")
    assert "threadgroup B (&b)[ 4 ] = []() -> auto& {" in text
    assert "threadgroup B (&c) = []() -> auto& {" in text


def test_names_of_what_is_refused_may_be_variables():
    refuse(tokenize("int tensor = 1; if (tensor < 3 && 4 > tensor) mesh = sampler + interpolant;"))
    with pytest.raises(NotSimulated, match="line 2: Metal 4 tensors are not simulated"):
        refuse(tokenize("\ntensor<device float, dextents<int, 2>> t;"))


def test_where_statements_begin():
    text = "a; if (b) c; for (;;) d; else e; #define M f\n#define N(x) g; \\\n h;\ni = 1;"
    tokens = tokenize(text)
    begins = [tokens[i].text for i in statement_starts(tokens)]
    assert [name for name in "acdefghi" if name not in begins] == ["f"]
    assert "b" not in begins


def test_variables_end_with_their_block():
    tokens = tokenize("void f(device S* p) { S a; { S b; b; } a; p; b; } p;")
    scopes = Scopes(tokens, {"S"}, {}, {})
    seen = [
        (token.text, scopes.variable(i) is not None)
        for i, token in enumerate(tokens)
        if token.text in "abp" and tokens[i + 1].text == ";" and tokens[i - 1].text in ";{}"
    ]
    assert seen == [("b", True), ("a", True), ("p", True), ("b", False), ("p", False)]


def test_members_of_one_name_and_two_types_are_not_taken_for_structures():
    known = structures(tokenize("struct A { float x; }; struct B { A x; A y; };"))
    assert set(known.members) == {"y"}


@given(st.text(alphabet="abS=.*&<>()[]{};, \n1", max_size=60))
def test_lines_are_kept(source):
    """Findings are at the user's lines, whatever the text."""
    assert rewritten(source).count("\n") == source.count("\n")
