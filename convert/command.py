"""``fm-mlx convert``: PyTorch weights of any lab to a folder for MLX, and proof of it."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.convert import QUANT_RECIPES
from mlx_lm.utils import load_model
from tqdm import tqdm

from fm_mlx.cli_types import number, whole
from fm_mlx.convert import parity, writing
from fm_mlx.convert.architecture import (
    UNSEEN,
    choose_map,
    differences,
    model_args,
    weight_shapes,
)
from fm_mlx.convert.builtin_maps import BUILTIN
from fm_mlx.convert.checkpoint import DTYPES, Checkpoint, open_checkpoint, shared
from fm_mlx.convert.key_map import KeyMap, Weight, read_key_map
from fm_mlx.files import folder_at
from fm_mlx.loading import find_checkpoint, find_tokenizer
from fm_mlx.model import ModelArgs

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_MODES = ("affine", "mxfp4", "nvfp4", "mxfp8")
_SHOWN = 6  # of a list of differences, in one line


@dataclass
class Source:
    """A checkpoint that is understood: a model's weights under our names, none read yet."""

    checkpoint: Checkpoint
    map: KeyMap
    weights: dict[str, Weight]
    args: ModelArgs
    notes: list[str] = field(default_factory=list)


def understand(
    path: Path, *, ema: bool = False, map: KeyMap | None = None, given: dict[str, Any] | None = None
) -> Source:
    """Open a checkpoint and find the model in it.

    Args:
        path: file or folder.
        ema: take the moving average.
        map: of names; None tries the built-in ones.
        given: values of what shapes do not tell (`architecture.UNSEEN`).

    Raises:
        FileNotFoundError, ValueError: in one line, what is wrong and what would be right.
    """
    checkpoint = open_checkpoint(path, ema=ema)
    map = map or choose_map(checkpoint.tensors, BUILTIN)
    weights = map.apply(checkpoint.tensors)
    notes = [f"names: {map.name}", *checkpoint.notes]
    notes += _tie(weights, checkpoint)
    args, wrong = model_args(weights, checkpoint.config, given or {})
    found = differences(weights, weight_shapes(args))
    if found:
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ValueError(f"{path} by the names of {map.name}: {'; '.join(found[:_SHOWN])}{more}")
    ordered = {name: weights[name] for name in weight_shapes(args)}
    return Source(checkpoint, map, ordered, args, notes + wrong)


def _tie(weights: dict[str, Weight], checkpoint: Checkpoint) -> list[str]:
    """Drop a head that is the embedding."""
    notes = [f"{first} and {second} are one tensor" for first, second in shared(checkpoint.tensors)]
    head, embedding = weights.get(_HEAD), weights.get(_EMBEDDING)
    if head is None or embedding is None or head.shape != embedding.shape:
        return notes
    if mx.array_equal(head.read(), embedding.read()):
        del weights[_HEAD]
        notes.append("the head is the embedding: tied")
    return notes


def write(source: Source, folder: Path, dtype: str | None, more: dict[str, Any]) -> None:
    """Write an unquantised model to an empty folder.

    Raises:
        ValueError: names the weights that are not finite, or not in `dtype`.
    """
    bad: list[str] = []

    def check(name: str, read: mx.array, written: mx.array) -> None:
        if not _is_finite(read):
            bad.append(f"{', '.join(source.weights[name].sources)} has NaN or infinite numbers")
        elif written.dtype != read.dtype and not _is_finite(written):
            bad.append(f"{', '.join(source.weights[name].sources)} has numbers beyond {dtype}")

    def dtype_of(name: str) -> mx.Dtype | None:
        if writing.precise(name):
            return mx.float32
        return None if dtype is None else getattr(mx, dtype)

    # as many weights to a shard as in the checkpoint: no more are in memory at once
    tensors = source.checkpoint.tensors.values()
    largest = max(tensor.where.stat().st_size for tensor in tensors)
    before = sum(weight.nbytes() for weight in source.weights.values())
    after = sum(weight.nbytes(dtype_of(name)) for name, weight in source.weights.items())
    shard = min(writing.LARGEST_SHARD, int(largest * min(1, after / before)))
    quiet = not sys.stderr.isatty()
    with tqdm(total=len(source.weights), disable=quiet, unit="tensor") as bar:
        writing.write_weights(folder, source.weights, dtype_of, check, shard, bar.update)
    if bad:
        hidden = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise ValueError("; ".join(bad[:_SHOWN]) + hidden)
    source.notes.append(writing.write_tokenizer(source.checkpoint.folder, folder))
    writing.write_config(folder, source.args, more)


def _is_finite(x: mx.array) -> bool:
    """In pieces: what is made on the way is not of the size of x."""
    numbers = x.reshape(-1)
    step = 1 << 20
    pieces = (numbers[i : i + step] for i in range(0, max(1, numbers.size), step))
    return all(mx.isfinite(piece).all().item() for piece in pieces)


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

        upload_to_hub(path, args.upload_repo)
    return 0 if compared is None or compared.passed else 1


def _compare(
    source: Source, folder: Path, args: argparse.Namespace, quantised: bool
) -> parity.Parity | None:
    if not parity.torch_is_there():
        return None
    model, config = load_model(folder, model_config={"model_file": None})
    tokenizer = find_tokenizer(folder, config)
    dtype = args.dtype or _dtype(source)
    label = "quantised" if quantised else dtype
    bound = args.parity_bound
    if bound is None and not quantised:
        bound = parity.BOUNDS[dtype]
    tokens = parity.text_tokens(tokenizer, source.args.vocab_size)
    found = parity.compare(source.weights, source.args, model, tokens, dtype=label, bound=bound)
    found.write(folder / "parity.json")
    return found


def _dtype(source: Source) -> str:
    """Of most of the weights."""
    count: dict[str, int] = {}
    for tensor in source.checkpoint.tensors.values():
        name = str(DTYPES[tensor.dtype]).removeprefix("mlx.core.")
        count[name] = count.get(name, 0) + math.prod(tensor.shape)
    return max(count, key=count.__getitem__)


def _describe(args: ModelArgs) -> str:
    parameters = sum(math.prod(shape) for shape in weight_shapes(args).values())
    return (
        f"{parameters:,} parameters, {args.num_hidden_layers} layers, hidden {args.hidden_size}, "
        f"m {args.num_memory_states}, k {args.num_active_states}, d {args.memory_size}, "
        f"tau {args.affinity_temperature:g}, eps {args.rms_norm_eps:g} and "
        f"{args.memory_norm_eps:g}"
    )
