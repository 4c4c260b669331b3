"""``fm-mlx plan``: what a model needs, and how fast a chip could be at most."""

from __future__ import annotations

import argparse

from fm_mlx.commands.arguments import number, whole
from fm_mlx.loading import load_args
from fm_mlx.perf.chips import Chip, find_chips
from fm_mlx.perf.launches import of_gradient, of_prompt, of_token, total
from fm_mlx.perf.plan import PAPER_1B, WEIGHT_BITS, Plan, seconds
from fm_mlx.support.tables import aligned


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``fm-mlx plan``."""
    parser.add_argument(
        "--model",
        help="a model folder or Hugging Face repository, or paper-1b, the paper's shape of a "
        "billion parameters; default: the packaged model",
    )
    parser.add_argument(
        "--chip", default="all", help="m1 to m5, m4-pro, m4-max, ..., or all (default)"
    )
    parser.add_argument(
        "--context", type=whole(1), default=8192, help="tokens of the prompt (default 8192)"
    )
    parser.add_argument(
        "--batch-size",
        type=whole(1),
        nargs="+",
        default=[1, 32],
        help="sequences decoded together (default 1 32)",
    )
    parser.add_argument(
        "--dtype",
        choices=WEIGHT_BITS,
        default="bfloat16",
        help="of the weights; router, norms and state stay float32 (default bfloat16)",
    )
    parser.add_argument(
        "--memory", type=number(0), metavar="GB", help="memory of the Mac, to say what fits in it"
    )


def run(args: argparse.Namespace) -> int:
    """Print the plan."""
    chips = find_chips(args.chip)
    model = PAPER_1B if args.model == "paper-1b" else load_args(args.model)
    plans = [Plan(model, batch, args.dtype) for batch in args.batch_size]
    print("\n".join(_needs(plans, args.memory)))
    print()
    print("\n".join(aligned(_launches(plans[0], args.context))))
    print()
    print(
        "What a Metal GPU launches, and the bytes that this moves. The gradient is that of the\n"
        "scans; prompt and gradient launch small operations beside these.\n"
    )
    print("\n".join(aligned(_bounds(plans, chips, args.context))))
    print()
    print(
        "Bounds in tokens/s: bytes over bandwidth and, for chips with *, operations over float32\n"
        f"speed. Sparse: the {model.num_active_states} active rows of a token; dense: all "
        f"{model.num_memory_states}. Prefill and a\ntraining step of AdamW: {args.context:,} "
        "tokens, batch 1."
    )
    return 0


def _needs(plans: list[Plan], memory: float | None) -> list[str]:
    """What is kept in memory, and what of it fits."""
    plan = plans[0]
    lines = [
        f"parameters       {plan.parameters:,}",
        f"weights          {plan.weight_bytes / 1e9:.3f} GB ({plan.dtype})",
        f"state            {plan.state_bytes / 1e6:.3f} MB a sequence, whatever the context",
    ]
    for plan in plans:
        # two buffers of the state take turns
        total = plan.weight_bytes + 2 * plan.batch * plan.state_bytes
        fits = "" if memory is None else ", fits" if total <= memory * 1e9 else ", does not fit"
        lines.append(f"decode, batch {plan.batch:<3}{total / 1e9:.3f} GB{fits}")
    if memory is not None:
        rest = memory * 1e9 - plan.weight_bytes
        lines.append(f"largest batch    {max(0, int(rest // (2 * plan.state_bytes))):,}")
    return lines


def _bounds(plans: list[Plan], chips: tuple[Chip, ...], context: int) -> list[list[str]]:
    """Rows of the table of bounds."""
    head = ["chip", "GB/s"]
    for plan in plans:
        head += [f"decode x{plan.batch} sparse", "dense"]
    rows = [[*head, "prefill", "training"]]
    for chip in chips:
        row = [chip.name + ("*" if chip.teraflops else ""), str(chip.bandwidth)]
        for plan in plans:
            for sparse in (True, False):
                row.append(f"{plan.batch / seconds(plan.decode(sparse=sparse), chip):,.0f}")
        # these are bound by arithmetic: bandwidth alone would promise the impossible
        for work in (plans[0].prefill(context), plans[0].training(context)):
            row.append(f"{context / seconds(work, chip):,.0f}" if chip.teraflops else "-")
        rows.append(row)
    return rows


def _launches(plan: Plan, context: int) -> list[list[str]]:
    """Rows of the table of launches and bytes."""
    columns = {
        f"token x{plan.batch}": of_token(plan),
        f"prompt of {context:,}": of_prompt(plan, context),
        "its gradient": of_gradient(plan, context),
    }
    works = [{x.name: x.work for x in launches} for launches in columns.values()]
    names = dict.fromkeys(name for of_column in works for name in of_column)
    rows = [["launches", *(text for name in columns for text in (name, "MB"))]]
    for name in names:
        row = [name]
        for of_column in works:
            work = of_column.get(name)
            row += ["", ""] if work is None else [f"{work.dispatches:,}", _megabytes(work.bytes)]
        rows.append(row)
    sums = [total(launches) for launches in columns.values()]
    rows.append(["together"])
    for work in sums:
        rows[-1] += [f"{work.dispatches:,}", _megabytes(work.bytes)]
    return rows


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.2f}"
