"""What Apple's compiler rejects is rejected here, by clang or by the lint."""

from __future__ import annotations

import pytest
from launches import INDEX, launch

from fm_mlx.metal_kernels import simulator

HELPERS = """
inline float of_threadgroup(const threadgroup float* p) { return p[0]; }
inline float of_thread(thread float& r) { return r; }
template <class T> struct Box { T v; Box(T x) : v(x) {} };
constant float third = 3;
constexpr constant int three = 3;
"""


@pytest.mark.parametrize(
    ("what", "source", "header"),
    [
        ("address space dropped", "thread const float* p = x + i; o[i] = *p;", ""),
        ("threadgroup to device", "threadgroup float s[4]; device float* p = s; o[i] = p[0];", ""),
        ("helper wants threadgroup", "o[i] = of_threadgroup(x);", ""),
        ("input written", "x[i] = 1; o[i] = 0;", ""),
        ("double", "double a = 1; o[i] = a;", ""),
        ("max(int, uint)", "int a = 3; o[i] = max(a, i);", ""),
        ("max(float, half)", "half a = 3; o[i] = max(a, x[i]);", ""),
        ("expf", "o[i] = expf(x[i]);", ""),
        ("std::", "o[i] = std::exp(x[i]);", ""),
        ("half from bfloat", "bfloat b = bfloat(x[i]); half h = b; o[i] = h;", ""),
        ("simd_sum of long", "o[i] = simd_sum(long(1));", ""),
        ("atomic<half>", "threadgroup atomic<half> a; o[i] = 0;", ""),
        (
            "maximum of float atomics",
            "atomic_fetch_max_explicit((device atomic<float>*)o, x[i], memory_order_relaxed);",
            "",
        ),
        ("components of a vector", "float4 v = float4(x[i], 1); o[i] = v.x;", ""),
        ("as_type of another size", "o[i] = as_type<half>(x[i]);", ""),
        ("unknown attribute", "o[thread_pos_in_grid.x] = 1;", ""),
        ("array of variable length", "int n = x[0]; float a[n + 1]; a[0] = 1; o[i] = a[0];", ""),
        ("program scope", "o[i] = g;", "float g = 3;\n"),
        ("static local", "static float s = 0; s += 1; o[i] = s;", ""),
        ("exception", "if (x[i] > 3) throw 1; o[i] = 0;", ""),
        ("typeid", "o[i] = sizeof(typeid(int));", ""),
        ("deduction of class templates (C++17)", "Box p(1.0f); o[i] = p.v;", ""),
        (
            "attribute in the header only",
            "o[i] = f();",
            "float f() { return thread_position_in_grid.x; }\n",
        ),
    ],
    ids=lambda value: value if "\n" not in value and ";" not in value else "",
)
def test_clang_rejects(what, source, header):
    with pytest.raises(simulator.CompileError, match="does not compile"):
        launch(INDEX + source, make={"header": HELPERS + header})


@pytest.mark.parametrize(
    ("message", "source", "header", "line"),
    [
        ("Metal has no new", "\no[i] = *(new float(1));", "", 2),
        ("Metal has no goto", "goto l; l: o[i] = 0;", "", 1),
        ("virtual functions", "S s; o[i] = s.f();",
         "struct S { virtual float f() { return 1; } };\n", 1),
        ("inline assembly", 'asm("nop"); o[i] = 0;', "", 1),
        ("lambdas", "auto f = [&](int i) { return x[i]; }; o[i] = f(1);", "", 1),
        ("'p' has no address space", "float v = 1; float* p = &v; o[i] = *p;", "", 1),
        ("'r' has no address space", "float v = 1; o[i] = f(v);",
         "\nfloat f(float& r) { return r; }\n", 2),
        ("'p' has no address space", "o[i] = f<float>(1);",
         "template <typename T> T f(T a) { T* p = &a; return *p; }\n", 1),
        ("'q' has no address space", "o[i] = 0;",
         "struct S { float v; };\nfloat f(S& q) { return q.v; }\n", 2),
        ("'p' has no address space", "uint v = 1; unsigned int* p = &v; o[i] = *p;", "", 1),
        ("to 'float' has no address space", "\no[i] = *(float*)(x + i);", "", 2),
        ("'P' has no address space", "typedef float* P; o[i] = x[i];", "", 1),
        ("to 'float' has no address space", "using P = float*; o[i] = x[i];", "", 1),
        ("'f' has no address space", "float v = 1; o[i] = *f(&v);",
         "float* f(thread float* p) { return p; }\n", 1),
        ("'f' calls itself", "o[i] = f(3);",
         "float f(int n) { return n ? n * f(n - 1) : 1; }\n", 1),
        ("outside the kernel function", "o[i] = f();",
         "float f() { threadgroup float s[4]; s[0] = 1; return s[0]; }\n", 1),
        ("bfloat", "bfloat b = x[i] * 2.0f; o[i] = b;", "", 1),
        ("bfloat", "bfloat b = bfloat(1.0f); \n\n b = b * 2.0f; o[i] = b;", "", 3),
    ],
    ids=lambda value: value if isinstance(value, str) and ";" not in value else "",
)  # fmt: skip
def test_lint_rejects(message, source, header, line):
    with pytest.raises(simulator.SimulationError) as error:
        launch(INDEX + source, make={"header": header})
    findings = [f for f in error.value.report.findings if f.kind == "not-metal"]
    assert [(f.file, f.line) for f in findings] == [("header" if header else "source", line)]
    assert message in findings[0].message


@pytest.mark.parametrize(
    "source",
    [
        "o[i] = third + three;",
        "bfloat b = static_cast<bfloat>(x[i] * 2.0f); o[i] = b;",
        "float v = 1; o[i] = of_thread(v);",
        "auto p = x + i; thread float v = *p; const device float& r = x[i]; o[i] = v + r;",
        "threadgroup float s[64]; threadgroup float* p = s; p[i] = x[i]; o[i] = s[i];",
        "// new double goto\n o[i] = x[i]; /* virtual */",
        "float4 v = *(const device float4*)(x + 4 * (i / 4)); o[i] = v[i % 4];",
        "float a = x[i] * 2, b = a * 3; o[i] = a * b;",
        "int n = 4 & int(i), m = (n * 2); o[i] = n & m;",
        "const device float* p = (const device float*)x; thread auto& r = i; o[i] = p[r];",
    ],
)
def test_metal_is_taken(source):
    launch(INDEX + source, make={"header": HELPERS}, fatal=simulator.KINDS)


@pytest.mark.parametrize(
    "header",
    [
        "float f(float a) { return a; } float f(float a, float b) { return f(a) + b; }",
        "template <int N> float f() { if constexpr (N > 0) { if constexpr (N > 1) { return 2; } }"
        " return N; }",
        "[[kernel]] void k(device float* o [[buffer(0)]]) { threadgroup float s[4]; s[0] = 1; }",
    ],
    ids=["overloads", "if constexpr", "threadgroup variable of a kernel"],
)
def test_lint_takes(header):
    assert simulator.lint("", header) == ()


def test_lint_knows_the_structs_of_the_header():
    (finding,) = simulator.lint("S s; S* p = &s;", "struct S { float v; };")
    assert (finding.file, finding.line) == ("source", 1)


def test_lint_by_itself():
    findings = simulator.lint("o[0] = 1;\ngoto end;", "float f(float* p);\n")
    assert [(f.kind, f.file, f.line) for f in findings] == [
        ("not-metal", "header", 1),
        ("not-metal", "source", 2),
    ]
