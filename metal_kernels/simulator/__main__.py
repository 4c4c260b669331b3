"""The simulator as a program; ``run`` is its only command."""

from __future__ import annotations

import argparse
import sys

from .compilation.clang import unavailable
from .mac.chips import CHIPS, DEFAULT_CHIP


def main() -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run a script as on a Mac, its Metal kernels simulated")
    run.add_argument("--chip", choices=CHIPS, default=DEFAULT_CHIP, help="the chip to describe")
    run.add_argument("--macos", action="store_true", help="say that this is macOS as well")
    run.add_argument(
        "--findings",
        choices=("fail", "warn"),
        default="fail",
        help="whether a finding makes the exit status 1",
    )
    run.add_argument("--orders", type=int, default=1, help="orders to execute every launch in")
    run.add_argument("--nan", action="store_true", help="find where NaN is made and compared")
    run.add_argument("--sarif", metavar="FILE", help="write the findings to a SARIF 2.1.0 file")
    run.add_argument("-m", dest="module", action="store_true", help="run a module by its name")
    run.add_argument("target", help="the script, or with -m the module")
    run.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")
    options = parser.parse_args()
    if options.orders < 1:
        run.error(f"--orders is {options.orders}; allowed are 1, 2, 3 and so on")
    if reason := unavailable():
        run.error(reason)

    from .testing.run import run as run_script

    return run_script(
        options.target,
        options.arguments,
        is_module=options.module,
        chip=options.chip,
        macos=options.macos,
        fails=options.findings == "fail",
        orders=options.orders,
        nan=options.nan,
        sarif=options.sarif,
    )


if __name__ == "__main__":
    sys.exit(main())
