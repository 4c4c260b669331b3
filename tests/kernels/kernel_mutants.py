"""Broken kernels, each of which the simulator or a comparison must catch.

A mutant is one piece of Metal text replaced in one kernel, whatever its variables are called.
``python tests/kernels/kernel_mutants.py`` prints the table of mutants and what was found.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import checks
from checks import rounded

from fm_mlx.metal_kernels import launch, simulator
from fm_mlx.metal_kernels.catalogue import KERNELS
from fm_mlx.metal_kernels.simulator.language.tokens import Token, tokenize

# Stands between a Metal file and the statements of a kernel.
_BORDER = "// ----"

# Words of Metal that stand for themselves in a pattern, besides functions and macros.
_WORDS = frozenset(
    [
        *("auto", "bool", "const", "constant", "constexpr", "device", "float", "half", "inline"),
        *("int", "long", "metal", "mem_flags", "size_t", "static", "template", "thread"),
        *("threadgroup", "typename", "uint", "ulong", "void"),
        *("break", "continue", "else", "false", "for", "if", "return", "true", "while"),
        *("x", "y", "z"),
    ]
)


def replaced(text: str, old: str, new: str) -> str:
    """Metal text with the tokens that `old` matches replaced by `new`.

    White space, comments and names of variables do not matter: a variable of `old` stands for
    some name, the same one everywhere. Of several matches the one counts whose names are
    those of `old`.

    Raises:
        ValueError: if there is not exactly one match.
    """
    tokens, pattern = tokenize(text), tokenize(old)
    found = []
    for at in range(len(tokens) - len(pattern) + 1):
        part = tokens[at : at + len(pattern)]
        bound: dict[str, str] = {}
        if all(
            (
                _is_variable(pattern, i)
                and token.kind == "name"
                and bound.setdefault(wanted.text, token.text) == token.text
            )
            or token.text == wanted.text
            for i, (wanted, token) in enumerate(zip(pattern, part, strict=True))
        ):
            found.append((part[0].start, part[-1].end, bound))
    if len(found) > 1:
        found = [match for match in found if all(a == b for a, b in match[2].items())]
    if len(found) != 1:
        raise ValueError(f"{len(found)} matches, must be one: {old!r}")
    start, end, bound = found[0]
    new = re.sub(r"[A-Za-z_]\w*", lambda name: bound.get(name[0], name[0]), new)
    return text[:start] + new + text[end:]


def _is_variable(tokens: Sequence[Token], i: int) -> bool:
    text = tokens[i].text
    around = [tokens[j].text if 0 <= j < len(tokens) else "" for j in (i - 1, i + 1)]
    is_named = "::" in around or around[0] == "." or around[1] == "("
    return tokens[i].kind == "name" and not is_named and text not in _WORDS and not text.isupper()


@dataclass(frozen=True)
class Mutant:
    """`old` of a kernel's Metal text becomes `new`; `check` must not pass."""

    kernel: str
    name: str
    check: Callable[[], object]
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.kernel}: {self.name}"

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the kernel is the broken one.

        Raises:
            ValueError: if `old` does not match exactly once.
        """
        kernel = KERNELS[self.kernel]
        header, body = kernel.header, kernel.body
        # the kernel's own statements stand behind its file
        kernel.header, kernel.body = replaced(
            f"{header}\n{_BORDER}\n{body}", self.old, self.new
        ).split(f"\n{_BORDER}\n")
        whole = vars(kernel).pop("simulated", None)
        try:
            yield
        finally:
            kernel.header, kernel.body = header, body
            vars(kernel).pop("simulated", None)
            if whole is not None:
                kernel.simulated = whole

    def found(self) -> str | None:
        """What was found, by the simulator or by the oracle; None if nothing."""
        try:
            with self.applied():
                self.check()
        except simulator.SimulationError as error:
            return "simulator: " + ", ".join(sorted({f.kind for f in error.report.findings}))
        except AssertionError as error:
            return "oracle: " + (str(error) or "assertion failed").splitlines()[0]
        return None


def route() -> None:
    """Three levels of logits, cut within the first, the second and the third 32 rows."""
    for num_active in (3, 20, 40):
        checks.route(rounded(checks.logits_with_ties(3, 70), mx.float32), num_active)


def norm() -> None:
    checks.add_rms_norm(2, 1030)


def norm_bf16() -> None:
    """Half a unit of the last place is allowed: a whole one has to come up."""
    checks.add_rms_norm(4, 1030, mx.bfloat16)


def route_large_logits() -> None:
    checks.route(rounded(checks.logits_with_ties(3, 70) * 100, mx.float32), 3)


def update() -> None:
    """Two blocks of rows, several SIMD-groups, a last thread without a column."""
    checks.sparse_update((2, 20, 70), 11)


def update_behind_another() -> None:
    """The last token's rows stand behind those of the token before."""
    checks.sparse_update((2, 20, 70), 11, seed=1)


def many_rows_update() -> None:
    checks.sparse_update((1, 70, 33), 40)


def product_update() -> None:
    checks.sparse_update((2, 1600, 33), 6, product_keys=True)


def masked_product_update() -> None:
    checks.sparse_update((3, 25, 33), 6, mask=[True, False, True], product_keys=True)


def masked_update() -> None:
    checks.sparse_update((3, 20, 70), 11, mask=[True, False, True])


def wide_update() -> None:
    """More than one column per thread."""
    checks.sparse_update((1, 5, 600), 2)


def state_pass() -> None:
    checks.state_pass((2, 4, 5, 7))


def state_pass_reverse() -> None:
    checks.state_pass((2, 4, 5, 7), reverse=True)


def long_state_pass() -> None:
    checks.state_over_many_chunks(1 - 2**-24, 2_000)


def scan() -> None:
    """Five blocks of rows on four SIMD-groups; the last block has 2 rows."""
    checks.chunk_scan((1, 2, 9, 130, 6), 40)


def scan_vjp() -> None:
    """Three blocks of rows on two SIMD-groups."""
    checks.chunk_scan_vjp((1, 2, 9, 70, 6), 20)


BARRIER = "metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);"
KEPT_IN_BF16 = "float(bfloat(carried))"

MUTANTS = [
    # ---- route
    Mutant(
        "route_dense",
        "ties go to the highest index",
        route,
        "equals_before = metal::simd_prefix_exclusive_sum(equal)",
        "equals_before = metal::simd_sum(equal) - 1 - metal::simd_prefix_exclusive_sum(equal)",
    ),
    Mutant(
        "route_dense",
        "of equal rows one too many is active",
        route,
        "equals_before < equals_wanted",
        "equals_before <= equals_wanted",
    ),
    Mutant(
        "route_dense",
        "ties are counted anew for every 32 rows",
        route,
        "equals_wanted -= metal::simd_sum(equal);",
        "",
    ),
    Mutant(
        "route_dense",
        "off-by-one tail: a row past the last one is read",
        route,
        "logit[j] = row < num_rows ?",
        "logit[j] = row <= num_rows + 2 ?",
    ),
    Mutant(
        "route_dense",
        "off-by-one tail: the last row is not written",
        route,
        "if (row < num_rows) {",
        "if (row < num_rows - 1) {",
    ),
    Mutant(
        "route_dense",
        "negative logits order like positive ones",
        route,
        "? ~bits : bits | 0x80000000u",
        "? bits : bits | 0x80000000u",
    ),
    Mutant(
        "route_dense",
        "the k best are not renormalised",
        route,
        "alpha[j] /= total;",
        "",
    ),
    Mutant(
        "route_dense",
        "the softmax does not subtract the largest logit",
        route_large_logits,
        "metal::exp((logit[j] - largest) / temperature)",
        "metal::exp(logit[j] / temperature)",
    ),
    Mutant(
        "route_dense",
        "temperature is forgotten",
        route,
        "(logit[j] - largest) / temperature",
        "(logit[j] - largest)",
    ),
    # ---- sparse_update
    Mutant(
        "sparse_update",
        "slots start anew for every 32 rows",
        many_rows_update,
        "before += metal::simd_sum(active[j] ? 1 : 0);",
        "",
    ),
    Mutant(
        "sparse_update_product",
        "dropped barrier: the halves are read before they are chosen",
        product_update,
        "metal::simdgroup_barrier(metal::mem_flags::mem_threadgroup);",
        "",
    ),
    Mutant(
        "sparse_update_product",
        "the second half is the first",
        product_update,
        "logits + half_index * half_length",
        "logits",
    ),
    Mutant(
        "sparse_update_product",
        "off-by-one tail: a row is numbered as if a half were one shorter",
        product_update,
        "* half_length + best[kept",
        "* (half_length - 1) + best[kept",
    ),
    Mutant(
        "sparse_update_product_masked",
        "missing mask",
        masked_product_update,
        "mask[batch]",
        "true",
    ),
    Mutant(
        "sparse_update",
        "dropped barrier: rows are read before they are chosen",
        update,
        "metal::threadgroup_barrier(metal::mem_flags::mem_device);",
        "",
    ),
    Mutant(
        "sparse_update",
        "a row that two tokens write is as the first one left it",
        update,
        "again < num_active",
        "again < 0",
    ),
    Mutant(
        "sparse_update",
        "every text of a batch gets what the first one wrote",
        update,
        "last_rows += before * width;",
        "last_rows += size_t(last_count - num_active) * width;",
    ),
    Mutant(
        "sparse_update",
        "what the token before the last wrote is taken for what the last one wrote",
        update_behind_another,
        "size_t(batch) * last_count + (last_count - num_active);",
        "size_t(batch) * last_count;",
    ),
    Mutant(
        "sparse_update",
        "dropped barrier: norms are read before all SIMD-groups wrote them",
        update,
        f"""    {BARRIER}
    UNROLL""",
        """    UNROLL""",
    ),
    Mutant(
        "sparse_update",
        "dropped barrier: the next rows' norms overwrite the last ones",
        update,
        f"""{BARRIER}
  }}""",
        """  }""",
    ),
    Mutant(
        "sparse_update",
        "off-by-one tail: the column past the last one is read",
        update,
        "if (column < width) {\n            const",
        "if (column <= width) {\n            const",
    ),
    Mutant(
        "sparse_update",
        "off-by-one tail: the last column of y is not written",
        update,
        "if (column < width) {\n      y",
        "if (column < width - 1) {\n      y",
    ),
    Mutant(
        "sparse_update",
        "off-by-one tail: one row too many",
        update,
        "if (slot < num_active) {\n        float norm",
        "if (slot <= num_active) {\n        float norm",
    ),
    Mutant(
        "sparse_update_masked",
        "missing mask",
        masked_update,
        "mask[batch]",
        "true",
    ),
    Mutant(
        "sparse_update_masked",
        "a masked token is multiplied by 0, not left out",
        masked_update,
        "active && column < width ?",
        "column < width ?",
    ),
    Mutant(
        "sparse_update_masked",
        "a masked token is read",
        masked_update,
        "active ? float(phi[slot]) : 0.0f",
        "float(phi[slot])",
    ),
    Mutant(
        "sparse_update",
        "state written in bf16",
        update,
        "const float number = (1.0f - write) * state[row + column] + write * new_value[c];",
        "const float number = float(bfloat("
        "(1.0f - write) * state[row + column] + write * new_value[c]));",
    ),
    Mutant(
        "sparse_update",
        "the norm of the first SIMD-group's columns",
        update,
        "g < simdgroups; ++g",
        "g < 1; ++g",
    ),
    Mutant(
        "sparse_update",
        "every thread's second column is its first",
        wide_update,
        "const int column = thread_index + c * threads;\n    new_value",
        "const int column = thread_index;\n    new_value",
    ),
    # ---- add_rms_norm
    Mutant(
        "add_rms_norm",
        "dropped barrier",
        norm,
        "metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);",
        "",
    ),
    Mutant(
        "add_rms_norm",
        "off-by-one tail: the column past the last one is read",
        norm,
        "if (column < hidden) { const T rounded",
        "if (column <= hidden) { const T rounded",
    ),
    Mutant(
        "add_rms_norm",
        "off-by-one tail: the last column is not written",
        norm,
        "if (column < hidden) {\n      const T number",
        "if (column < hidden - 1) {\n      const T number",
    ),
    Mutant(
        "add_rms_norm",
        "the norm of x without the update",
        norm,
        "sum[c] = float(rounded);",
        "sum[c] = float(x[column]);",
    ),
    Mutant(
        "add_rms_norm",
        "the norm of a sum that was not rounded",
        norm_bf16,
        "sum[c] = float(rounded);",
        "sum[c] = float(x[column]) + float(update[column]);",
    ),
    Mutant(
        "add_rms_norm_in_float",
        "the norm in float32 is not the rounded one",
        norm_bf16,
        "put(in_float, size_t(token) * hidden + column, float(number));",
        "put(in_float, size_t(token) * hidden + column, sum[c] * inverse_rms * weight[column]);",
    ),
    Mutant(
        "add_rms_norm",
        "eps is forgotten",
        norm,
        "float(hidden) + eps",
        "float(hidden)",
    ),
    Mutant(
        "add_rms_norm",
        "weight is forgotten",
        norm,
        "inverse_rms * weight[column]",
        "inverse_rms",
    ),
    Mutant(
        "add_rms_norm",
        "every thread's second column is its first",
        norm,
        "const int column = thread_index + c * threads; if (column < hidden) { const T rounded",
        "const int column = thread_index; if (column < hidden) { const T rounded",
    ),
    # ---- state_pass
    Mutant(
        "state_pass",
        "state written in bf16",
        state_pass,
        "starts[chunk * size + element] = carried;",
        f"carried = {KEPT_IN_BF16};\n    starts[chunk * size + element] = carried;",
    ),
    Mutant(
        "state_pass",
        "off-by-one tail: the last chunk is left out",
        state_pass,
        "i < chunks; ++i",
        "i < chunks - 1; ++i",
    ),
    Mutant(
        "state_pass",
        "a chunk's state is the one after it",
        state_pass,
        "    rest -= carried - sum;\n",
        "    rest -= carried - sum;\n    starts[chunk * size + element] = carried;\n",
    ),
    Mutant(
        "state_pass",
        "what rounding takes is not kept",
        long_state_pass,
        "carried = sum + rest;",
        "carried = sum;",
    ),
    Mutant(
        "state_pass",
        "in reverse, one chunk too far",
        state_pass_reverse,
        "chunks - 1 - i",
        "chunks - i",
    ),
    Mutant(
        "state_pass",
        "every batch row starts from the first one's state",
        state_pass,
        "float carried = state[place];",
        "float carried = state[element];",
    ),
    # ---- chunk_scan
    Mutant(
        "chunk_scan",
        "dropped barrier: G is used before all of it is there",
        scan,
        f"""  }}
  {BARRIER}

  for (int first""",
        """  }

  for (int first""",
    ),
    Mutant(
        "chunk_scan",
        "dropped barrier: sums are added up before all are there",
        scan,
        f"""  {BARRIER}
  for (uint i""",
        """  for (uint i""",
    ),
    Mutant(
        "chunk_scan",
        "barrier without its memory flag",
        scan,
        f"""  {BARRIER}
  for (uint i""",
        """  metal::threadgroup_barrier(metal::mem_flags::mem_none);
  for (uint i""",
    ),
    Mutant(
        "chunk_scan",
        "off-by-one tail: a row past the last one is read",
        scan,
        "const bool exists = row < rows;",
        "const bool exists = row <= rows;",
    ),
    Mutant(
        "chunk_scan",
        "off-by-one tail: the last row of G is left out",
        scan,
        "t < tokens && s <= t",
        "t < tokens - 1 && s <= t",
    ),
    Mutant(
        "chunk_scan",
        "missing mask: threads past the last row read and write",
        scan,
        "const bool exists = row < rows;",
        "const bool exists = true;",
    ),
    Mutant(
        "chunk_scan",
        "norms decay once, not twice",
        scan,
        "norm = keep * keep * norm +",
        "norm = keep * norm +",
    ),
    Mutant(
        "chunk_scan",
        "the sums of the first SIMD-group only",
        scan,
        "g < simdgroups; ++g",
        "g < 1; ++g",
    ),
    Mutant(
        "chunk_scan",
        "a token is read before it is written",
        scan,
        "read[item] = query * decay;",
        "read[item] = query * decay / keep;",
    ),
    Mutant(
        "chunk_scan",
        "state written in bf16",
        scan,
        "weight[s] = s == t ? write : keep * weight[s];",
        "weight[s] = float(bfloat(s == t ? write : keep * weight[s]));",
    ),
    Mutant(
        "chunk_scan",
        "lanes exchange with the wrong partner",
        scan,
        "metal::simd_shuffle_xor(give, half_lanes)",
        "metal::simd_shuffle_xor(give, 1)",
    ),
    # ---- chunk_scan_vjp
    Mutant(
        "chunk_scan_vjp",
        "dropped barrier: G is used before all of it is there",
        scan_vjp,
        f"""  }}
  {BARRIER}

  for (int first = simdgroup * LANES; first < rows; first += threads) {{
    const int row = first + lane;
    const bool exists = row < rows;
    float write""",
        """  }

  for (int first = simdgroup * LANES; first < rows; first += threads) {
    const int row = first + lane;
    const bool exists = row < rows;
    float write""",
    ),
    Mutant(
        "chunk_scan_vjp",
        "dropped barrier: sums are added up before all are there",
        scan_vjp,
        f"""  {BARRIER}
  for (uint i = thread_index; i < uint(tokens * tokens); i += threads) {{
    const int slot = (i / tokens) * LANES + i % tokens;
    float sum = 0.0f;
    for (uint g = 0; g < simdgroups; ++g) {{
      sum += partial[g * LANES * LANES + slot];
    }}
    d_gram""",
        """  for (uint i = thread_index; i < uint(tokens * tokens); i += threads) {
    const int slot = (i / tokens) * LANES + i % tokens;
    float sum = 0.0f;
    for (uint g = 0; g < simdgroups; ++g) {
      sum += partial[g * LANES * LANES + slot];
    }
    d_gram""",
    ),
    Mutant(
        "chunk_scan_vjp",
        "off-by-one tail: the first token has no gradient",
        scan_vjp,
        "int t = tokens - 1; t >= 0; --t",
        "int t = tokens - 1; t > 0; --t",
    ),
    Mutant(
        "chunk_scan_vjp",
        "off-by-one tail: the weight before the token is read a token late",
        scan_vjp,
        "weight[s] = s < t ? write[s] * before : 0.0f;",
        "weight[s] = s <= t ? write[s] * before : 0.0f;",
    ),
    Mutant(
        "chunk_scan_vjp",
        "missing mask: threads past the last row write",
        scan_vjp,
        "if (exists) {\n      d_norm0",
        "if (true) {\n      d_norm0",
    ),
    Mutant(
        "chunk_scan_vjp",
        "no gradient through the decay of the chunk's start",
        scan_vjp,
        "d_keep += d_decay * before;",
        "",
    ),
    Mutant(
        "chunk_scan_vjp",
        "no gradient through the norms",
        scan_vjp,
        "d_norm += norm_now > 0.0f ?",
        "d_norm += norm_now < 0.0f ?",
    ),
    Mutant(
        "chunk_scan_vjp",
        "no gradient through later weights",
        scan_vjp,
        "d_keep += d_weight[s] * weight[s];",
        "",
    ),
    Mutant(
        "chunk_scan_vjp",
        "norms kept in bf16",
        scan_vjp,
        "norm_of[t * LANES + lane] = norm;",
        "norm_of[t * LANES + lane] = float(bfloat(norm));",
    ),
    Mutant(
        "chunk_scan_vjp",
        "the first block's sums only",
        scan_vjp,
        "own[t * LANES + lane] += sum_by_lane(terms, lane);\n      if (exists) {\n        d_theta",
        "own[t * LANES + lane] = sum_by_lane(terms, lane);\n      if (exists) {\n        d_theta",
    ),
]


def table() -> str:
    """Every mutant with what was found, one line each."""
    lines = []
    for mutant in MUTANTS:
        lines.append(f"{mutant.kernel:22} {mutant.name:70} {mutant.found() or 'NOT CAUGHT'}")
    return "\n".join(lines)


if __name__ == "__main__":
    with launch.using("simulator"), simulator.options(fatal=simulator.KINDS):
        print(table())
