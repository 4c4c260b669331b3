"""``fm-mlx convert``: PyTorch weights of any lab to a folder for MLX, and proof of it."""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import cast

from mlx_lm.convert import QUANT_RECIPES
from mlx_lm.utils import load_model

from fm_mlx.commands.arguments import number, whole
from fm_mlx.convert import parity, writing
from fm_mlx.convert.architecture import UNSEEN
from fm_mlx.convert.key_map import read_key_map
from fm_mlx.convert.source import Source, understand, write
from fm_mlx.layer import LINEAR, PRODUCT
from fm_mlx.loading import find_checkpoint, find_tokenizer
from fm_mlx.model import Model, ModelArgs
from fm_mlx.support.files import folder_at
from fm_mlx.weights import weight_shapes

_MODES = ("affine", "mxfp4", "nvfp4", "mxfp8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``fm-mlx convert``, by mlx-lm's names where it has them."""
    parser.add_argument(
        "--hf-path",
        "--model",
        required=True,
        help="a checkpoint: .safetensors, .bin, .pt, a folder, or a Hugging Face repository",
    )
    parser.add_argument("--mlx-path", default="mlx_model", help="folder to write (mlx_model)")
    parser.add_argument("--key-map", type=Path, metavar="FILE", help="JSON or TOML: how names map")
    parser.add_argument("--ema", action="store_true", help="take the moving average of the weights")
    parser.add_argument("--num-active-states", type=whole(1), metavar="K", help="k, active rows")
    parser.add_argument("--affinity-temperature", type=number(0), metavar="TAU", help="tau")
    parser.add_argument(
        "--router", choices=[LINEAR, PRODUCT],
        help="whether the rows have weights of their own in the router, or product keys "
        f"(default: what the config says, {LINEAR} if it says nothing)",
    )  # fmt: skip
    parser.add_argument("--rms-norm-eps", type=number(0), metavar="EPS", help="of the norms")
    parser.add_argument("--memory-norm-eps", type=number(0), metavar="EPS", help="of the rows")
    parser.add_argument(
        "--dtype", choices=["float16", "bfloat16", "float32"],
        help="of the weights; router and norms stay float32 (default: as they come)",
    )  # fmt: skip
    parser.add_argument("-q", "--quantize", action="store_true", help="quantise with mlx-lm")
    parser.add_argument("--q-group-size", type=whole(1), help="weights that share a scale")
    parser.add_argument("--q-bits", type=whole(1), help="bits of a weight (default 4)")
    parser.add_argument("--q-mode", choices=_MODES, default="affine", help="(default affine)")
    parser.add_argument("--quant-predicate", choices=QUANT_RECIPES, help="a mixed recipe of mlx-lm")
    parser.add_argument(
        "--bundle-code", action="store_true",
        help="add a file by which mlx-lm's own commands run the model with --trust-remote-code",
    )  # fmt: skip
    parser.add_argument("--upload-repo", help="Hugging Face repository to upload the result to")
    parser.add_argument(
        "--parity-bound", type=number(0), metavar="X",
        help=f"largest |dlogit| allowed (default: {_bounds()})",
    )  # fmt: skip
    parser.add_argument(
        "--no-parity", action="store_true", help="do not compare with the PyTorch reference"
    )


def _bounds() -> str:
    return ", ".join(f"{bound:g} in {dtype}" for dtype, bound in parity.BOUNDS.items())


def run(args: argparse.Namespace) -> int:
    """Convert, compare, report; 1 if the models differ."""
    path = Path(args.mlx_path)
    quantised = args.quantize or args.quant_predicate is not None
    source = find_checkpoint(args.hf_path)
    map = None if args.key_map is None else read_key_map(args.key_map)
    with folder_at(path) as folder:
        given = {key: getattr(args, key) for key in UNSEEN}
        understood = understand(source, ema=args.ema, map=map, given=given)
        more = writing.bundle_code(folder) if args.bundle_code else {}
        if quantised:
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as plain:
                write(understood, Path(plain), args.dtype, {})
                writing.quantise(
                    Path(plain), folder, group_size=args.q_group_size, bits=args.q_bits,
                    mode=args.q_mode, recipe=args.quant_predicate, more=more,
                )  # fmt: skip
        else:
            write(understood, folder, args.dtype, more)
        compared = None if args.no_parity else _compare(understood, folder, args, quantised)
    print(f"{path}: {_describe(understood.args)}")
    for note in understood.notes:
        print(f"  {note}")
    if compared is not None:
        print("\n".join(compared.lines()))
    else:
        why = "as --no-parity asks" if args.no_parity else "PyTorch is not installed"
        print(f"Not checked ({why}): that the logits are those of the PyTorch reference.")
    if args.upload_repo:
        from mlx_lm.utils import upload_to_hub

        upload_to_hub(str(path), args.upload_repo)
    return 0 if compared is None or compared.passed else 1


def _compare(
    source: Source, folder: Path, args: argparse.Namespace, quantised: bool
) -> parity.Parity | None:
    if not parity.torch_is_there():
        return None
    model, config = load_model(folder, model_config={"model_file": None})
    tokenizer = find_tokenizer(folder, config)
    dtype = args.dtype or source.dtype
    label = "quantised" if quantised else dtype
    bound = args.parity_bound
    if bound is None and not quantised:
        bound = parity.BOUNDS[dtype]
    tokens = parity.text_tokens(tokenizer, source.args.vocab_size)
    found = parity.compare(
        source.weights, source.args, cast(Model, model), tokens, dtype=label, bound=bound
    )
    found.write(folder / "parity.json")
    return found


def _describe(args: ModelArgs) -> str:
    parameters = sum(math.prod(shape) for shape in weight_shapes(args).values())
    return (
        f"{parameters:,} parameters, {args.num_hidden_layers} layers, hidden {args.hidden_size}, "
        f"m {args.num_memory_states}, k {args.num_active_states}, d {args.memory_size}, "
        f"tau {args.affinity_temperature:g}, eps {args.rms_norm_eps:g} and "
        f"{args.memory_norm_eps:g}" + (", product keys" if args.router == PRODUCT else "")
    )
