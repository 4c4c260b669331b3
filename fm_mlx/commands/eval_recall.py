"""``fm-mlx eval recall``: how many pairs small models learn to keep (MQAR)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fm_mlx.commands.arguments import number, whole
from fm_mlx.commands.eval_options import add_output, check_output

# the names of `fm_mlx.evaluation.arms.ARMS`, said here so that --help need not load MLX
ARMS = ("fm", "fm_convolved", "fm_product", "llama", "mamba2", "gated_delta")

DESCRIPTION = (
    "Train small models from nothing on multi-query associative recall (arXiv:2312.04927): a "
    "sequence lists pairs of a key and a value, the keys come again, and the model is to say the "
    "values. The share of right answers is given for each kind of sequence."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--arm", nargs="+", choices=ARMS, default=["fm", "llama"],
        help="what to train; fm_convolved is fm with a short convolution before each memory, "
        "fm_product the same with rows chosen by product keys (default: fm llama)",
    )  # fmt: skip
    parser.add_argument(
        "--train", nargs="+", type=_setting, metavar="T:P",
        default=[(32, 8), (64, 16)],
        help="kinds of sequences to learn, as tokens:pairs (default: 32:8 64:16)",
    )  # fmt: skip
    parser.add_argument(
        "--test", nargs="+", type=_setting, metavar="T:P",
        default=[(64, 4), (64, 16), (128, 32), (256, 64), (1024, 120)],
        help="kinds to answer afterwards (default: 64:4 64:16 128:32 256:64 1024:120)",
    )  # fmt: skip
    parser.add_argument("--hidden-size", type=whole(8), default=64, help="(default: 64)")
    parser.add_argument("--num-layers", type=whole(1), default=2, help="(default: 2)")
    parser.add_argument(
        "--num-memory-states", type=whole(1), default=64, metavar="M",
        help="rows of a memory of fm (default: 64)",
    )  # fmt: skip
    parser.add_argument(
        "--num-active-states", type=whole(1), default=2, metavar="K",
        help="rows that a token writes and reads (default: 2)",
    )  # fmt: skip
    parser.add_argument(
        "--router-scale", type=number(0, 1000), default=1.0, metavar="S",
        help="what the weights that score the rows are multiplied by at the beginning, so that "
        "affinities are sharper; 1 is the paper's model (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--dense-share", type=number(0, 0.5), default=0.0, metavar="SHARE",
        help="of the steps in which all rows are active, before as many steps in which K is "
        "reached by halves; 0 is the paper's training (default: 0)",
    )  # fmt: skip
    parser.add_argument("--steps", type=whole(1), default=1500, help="(default: 1500)")
    parser.add_argument(
        "--tokens-per-step", type=whole(1), default=1024, metavar="N", help="(default: 1024)"
    )
    parser.add_argument("--learning-rate", type=number(0, 1), default=1e-2, help="(default: 0.01)")
    parser.add_argument(
        "--vocab-size", type=whole(4), default=256, metavar="V",
        help="half of the tokens are keys, half are values (default: 256)",
    )  # fmt: skip
    parser.add_argument("--seed", type=whole(0), default=0, help="(default: 0)")
    add_output(parser, "the share of right answers by pairs")


def run(args: argparse.Namespace) -> int:
    """Train each arm, print a table, and write what is asked for."""
    from tqdm import tqdm

    from fm_mlx.evaluation import arms, pictures, recall
    from fm_mlx.support.files import write_csv
    from fm_mlx.support.tables import aligned

    check_output(args)
    training = recall.Training(
        settings=[recall.Setting(*setting) for setting in args.train],
        steps=args.steps,
        tokens=args.tokens_per_step,
        rate=args.learning_rate,
        vocab_size=args.vocab_size,
        seed=args.seed,
        dense_share=args.dense_share,
    )
    tested = [recall.Setting(*setting) for setting in args.test]
    for setting in tested:
        recall.check_fits(setting, args.vocab_size)
    rows_of_fm = dict(
        num_memory_states=args.num_memory_states,
        num_active_states=args.num_active_states,
        router_scale=args.router_scale,
    )
    found = []
    for arm in args.arm:
        changes = rows_of_fm if arm.startswith("fm") else {}
        model = arms.build(
            arm, args.vocab_size, args.hidden_size, args.num_layers, args.seed, **changes
        )
        bar = tqdm(
            recall.train(model, training), desc=arm, total=args.steps, unit="step", leave=False,
            disable=not sys.stderr.isatty(),
        )  # fmt: skip
        for _, loss in bar:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        shares = [recall.accuracy(model, setting, args.vocab_size) for setting in tested]
        found.append((arm, list(zip(tested, shares, strict=True))))
    header = ["arm", *map(str, tested)]
    rows = [[arm, *(f"{share:.1%}" for _, share in shares)] for arm, shares in found]
    print("right answers, by tokens:pairs\n")
    print("\n".join(aligned([header, *rows])))
    if args.csv is not None:
        lines = (
            (arm, setting.length, setting.pairs, share)
            for arm, shares in found
            for setting, share in shares
        )
        write_csv(Path(args.csv), ("arm", "tokens", "pairs", "accuracy"), lines)
    if args.plot is not None:
        pictures.draw_recall(found, Path(args.plot))
    return 0


def _setting(text: str) -> tuple[int, int]:
    try:
        length, pairs = map(int, text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not of the form tokens:pairs, such as 64:16"
        ) from None
    return length, pairs
