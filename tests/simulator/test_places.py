"""Findings point into the file in which the kernel's text stands."""

from __future__ import annotations

import pytest

from fm_mlx.metal_kernels.simulator.testing.places import place

SOURCE = "\n    uint i = thread_position_in_grid.x;\n    y[i] = x[i];\n    if (i) { y[0] = 1; }\n"

MODULE = f'''import mlx.core as mx

OTHER = """
    uint i = thread_position_in_grid.x;
    y[i] = x[i] + 1;
"""
SOURCE = """{SOURCE}"""
ONE_LINE = "y[0] = x[7];"
FORMATTED = f"""
    for (int k = 0; k < {{N}}; k++) {{{{ y[k] = 0; }}}}
    y[N] = {{VALUE}};
"""
'''


def where(text: str) -> int:
    return 1 + next(i for i, line in enumerate(MODULE.split("\n")) if text in line)


@pytest.fixture
def module(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(MODULE)
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels/scan.metal").write_text("// a scan\nfloat s = 0;\ns += x[i];\n")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden/copy.py").write_text("s += x[i] * 2;\n")
    return str(path)


@pytest.mark.parametrize(
    ("source", "line", "text"),
    [
        (SOURCE, 2, None),  # the same line stands in another text before
        (SOURCE, 3, "y[i] = x[i];"),
        ("y[0] = x[7];", 1, "ONE_LINE"),
        ("\n    for (int k = 0; k < 4; k++) { y[k] = 0; }\n    y[N] = 2;\n", 2, "made"),
        ("\n    for (int k = 0; k < {N}; k++) { y[k] = 0; }\n", 2, "for (int k"),
        ("nowhere();", 1, "made"),
        (SOURCE, 0, "made"),
        (SOURCE, 99, "made"),
        (SOURCE, 1, "made"),  # an empty line
    ],
)
def test_lines_of_the_module(module, source, line, text):
    expected = {None: where("SOURCE =") + line - 1, "made": 77}.get(text) or where(text)
    definition = {"source": source, "header": ""}
    assert place(definition, (module, 77), "source", line) == (module, expected)


def test_a_file_beside_it(module):
    definition = {"source": "", "header": "// a scan\nfloat s = 0;\ns += x[i];\n"}
    path, line = place(definition, (module, 1), "header", 3)
    assert path.endswith("kernels/scan.metal") and line == 3
    assert place({"source": "s += x[i] * 2;"}, (module, 5), "source", 1) == (module, 5)


def test_no_file():
    assert place({"source": "a();"}, ("<stdin>", 3), "source", 1) == ("<stdin>", 3)
    assert place({"source": "a();"}, ("<stdin>", 3), "", 0) == ("<stdin>", 3)
