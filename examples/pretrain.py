"""Train a small language model on old literature: the one in the package, or one like it.

    python examples/pretrain.py --out runs/fm                   # Factorization Memory
    python examples/pretrain.py --out runs/llama --arch llama   # same size, data and steps
    python examples/pretrain.py --out runs/mamba2 --arch mamba2
    python examples/pretrain.py --write-text bible.txt          # the King James Bible, whole

The texts are those of ``texts.py``, in the public domain and installed by name; a twentieth of each
is held out. The run writes a folder that `fm_mlx.load` and `mlx_lm.load` open (the weights of the
lowest held-out loss), the held-out text, a log, and a checkpoint from which the same command goes
on after an interruption.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import sentencepiece
import texts
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models import llama, mamba2
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

import fm_mlx
from fm_mlx.evaluation.arms import draw_time_steps
from fm_mlx.perf.bench import MAMBA2_CONFIG
from fm_mlx.support.allocator import keep_freed_memory

VOCAB_SIZE = 2048
# of the held-out text, while training
CHECKED_TOKENS = 50_000

SHAPE = dict(hidden_size=128, num_hidden_layers=6, vocab_size=VOCAB_SIZE, tie_word_embeddings=True)
CONFIGS = {
    "fm": dict(
        model_type="factorization_memory",
        intermediate_size=384,
        memory_size=128,
        num_memory_states=4,
        num_active_states=2,
        affinity_temperature=1.0,
        rms_norm_eps=1e-6,
        memory_norm_eps=1e-6,
        **SHAPE,
    ),
    # attention has more weights than the memory, so the MLP is narrower by as much
    "llama": dict(
        model_type="llama",
        intermediate_size=310,
        num_attention_heads=4,
        rms_norm_eps=1e-6,
        **SHAPE,
    ),
    # a block is a mixer alone, and has no SwiGLU: more blocks, as many weights in all
    "mamba2": MAMBA2_CONFIG
    | SHAPE
    | dict(num_hidden_layers=9, intermediate_size=256, num_heads=4, state_size=86),
}
CLASSES = {
    "fm": (fm_mlx.Model, fm_mlx.ModelArgs),
    "llama": (llama.Model, llama.ModelArgs),
    "mamba2": (mamba2.Model, mamba2.ModelArgs),
}


def train_tokenizer(text: str, folder: Path) -> None:
    """A sentencepiece BPE with byte fallback, also written as ``tokenizer.json``.

    No dummy prefix and no normalisation: decoding gives back the text, and text cut before a
    space tokenizes like the whole.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()),
        model_writer=model,
        vocab_size=VOCAB_SIZE,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        user_defined_symbols=["\n"],
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    vocab = {pieces.id_to_piece(i): i for i in range(len(pieces))}
    merges = []
    for piece, i in vocab.items():
        if pieces.is_byte(i) or pieces.is_control(i) or pieces.is_unknown(i):
            continue
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        pairs = [pair for pair in pairs if pair[0] in vocab and pair[1] in vocab]
        merges += sorted(pairs, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("\n"), "isolated"),
            pre_tokenizers.Split(Regex("▁+"), "merged_with_next"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = dict(
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=10**9,
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def built(arch: str, config: dict, seed: int) -> nn.Module:
    """A new model of an architecture, its weights drawn by a seed."""
    model_class, args_class = CLASSES[arch]
    mx.random.seed(seed)
    return draw_time_steps(model_class(args_class.from_dict(config)))


def loss_fn(model: nn.Module, windows: mx.array) -> mx.array:
    """Mean loss in nats per token of windows (B, T + 1)."""
    logits = model(windows[:, :-1])
    targets = mx.take_along_axis(logits, windows[:, 1:, None], axis=-1)
    # exp(x) as a power of 2: half the time of mx.exp on a Linux CPU, where it is the
    # largest single cost of so small a model
    top = mx.stop_gradient(logits.max(axis=-1, keepdims=True))
    total = mx.power(2.0, (logits - top) * math.log2(math.e)).sum(axis=-1, keepdims=True)
    return (top + mx.log(total) - targets).mean()


def schedule(rate: float, warmup: int, steps: int) -> Callable[[mx.array], mx.array]:
    """Learning rates by step: a linear warm-up, then a cosine to 5 %."""
    rising = optim.linear_schedule(0.0, rate, warmup)
    falling = optim.cosine_decay(rate, steps - warmup, 0.05 * rate)
    return optim.join_schedules([rising, falling], [warmup])


def compiled_step(
    model: nn.Module,
    optimizer: optim.Optimizer,
    state: list,
    loss_fn: Callable[[nn.Module, mx.array], mx.array] = loss_fn,
) -> Callable[[mx.array], mx.array]:
    """A training step on windows (B, T + 1) that returns their loss; it changes the state.

    Gradients are clipped at norm 1.
    """

    @partial(mx.compile, inputs=state, outputs=state)
    def update(windows: mx.array) -> mx.array:
        loss, gradients = nn.value_and_grad(model, loss_fn)(model, windows)
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        return loss

    return update


def held_out_nats(model: nn.Module, tokens: np.ndarray, context: int) -> float:
    """Mean nats per token over windows of ``context`` that cover the tokens once."""
    first = np.arange((len(tokens) - 1) // context)[:, None] * context
    return mean_nats(model, tokens[first + np.arange(context + 1)])


def mean_nats(model: nn.Module, windows: np.ndarray) -> float:
    """Mean nats per token of windows (N, T + 1), each read from an empty memory."""
    batch = max(1, 2048 // windows.shape[1])
    total = 0.0
    for start in range(0, len(windows), batch):
        some = windows[start : start + batch]
        total += loss_fn(model, mx.array(some)).item() * len(some)
    return total / len(windows)


def save_model(model: nn.Module, config: dict, folder: Path) -> None:
    """Weights and config, each renamed into place once whole."""
    weights = dict(tree_flatten(model.parameters()))
    partial_file = folder / "partial.safetensors"
    mx.save_safetensors(str(partial_file), weights, metadata={"format": "mlx"})
    partial_file.rename(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def read_tokens(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, float]:
    """Tokens to train on, held-out windows (N, context + 1), and bytes of a held-out token.

    The held-out text and, at the first time, the tokenizer are written to the run's folder.
    """
    names = tuple(args.only or (text.name for text in texts.TEXTS))
    both = texts.training_and_held_out(args.texts or args.out.parent / "texts", names)
    training_text, held_out_text = ("".join(part) for part in zip(*both.values(), strict=True))
    (args.out / "held_out.txt").write_text(held_out_text, encoding="utf-8")
    if not (args.out / "tokenizer.json").exists():
        train_tokenizer(training_text, args.out)
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    tokens, held_out = (
        np.concatenate([np.array(tokenizer.encode(text).ids, np.int32) for text in part])
        for part in zip(*both.values(), strict=True)
    )
    # windows all over the held-out text
    count = max(1, min(CHECKED_TOKENS, len(held_out)) // args.context)
    starts = np.linspace(0, len(held_out) - args.context - 1, count).astype(int)
    windows = held_out[starts[:, None] + np.arange(args.context + 1)]
    return tokens, windows, len(held_out_text.encode()) / len(held_out)


def train(args: argparse.Namespace) -> None:
    folder = args.out
    folder.mkdir(parents=True, exist_ok=True)
    tokens, checked, bytes_per_token = read_tokens(args)
    config = CONFIGS[args.arch] | args.change
    model = built(args.arch, config, args.seed)
    parameters = sum(v.size for _, v in tree_flatten(model.parameters()))
    print(f"{args.arch}: {parameters:,} parameters; {len(tokens):,} tokens to train on", flush=True)

    optimizer = optim.AdamW(
        schedule(args.learning_rate, args.warmup, args.steps), betas=[0.9, 0.95], weight_decay=0.1
    )
    optimizer.init(model.trainable_parameters())
    checkpoint = folder / "checkpoint.safetensors"
    step, best = 0, math.inf
    if checkpoint.exists():
        saved, metadata = mx.load(str(checkpoint), return_metadata=True)
        saved = tree_unflatten(list(saved.items()))
        model.update(saved["model"])
        optimizer.state = saved["optimizer"]
        step, best = int(metadata["step"]), float(metadata["best"])
        print(f"goes on from step {step}", flush=True)

    state = [model.state, optimizer.state]

    update = compiled_step(model, optimizer, state)
    log = (folder / "log.jsonl").open("a")
    recent, started, first_step = [], time.perf_counter(), step
    while step < args.steps:
        # drawn from the step alone: an interrupted run sees the same batches
        first = np.random.default_rng((args.seed, step)).integers(
            0, len(tokens) - args.context - 1, (args.batch, 1)
        )
        recent.append(update(mx.array(tokens[first + np.arange(args.context + 1)])))
        mx.eval(recent[-1], state)
        step += 1
        if step % args.report_every and step != args.steps:
            continue
        held_out_loss = mean_nats(model, checked)
        seconds = time.perf_counter() - started
        row = {
            "step": step,
            "tokens": step * args.batch * args.context,
            "loss": mx.stack(recent).mean().item(),
            "held_out_loss": held_out_loss,
            "held_out_bits_per_byte": held_out_loss / bytes_per_token / math.log(2),
            "minutes": seconds / 60,
            "tokens_per_second": (step - first_step) * args.batch * args.context / seconds,
        }
        print(json.dumps(row), file=log, flush=True)
        print(json.dumps(row), flush=True)
        if not math.isfinite(held_out_loss):
            raise SystemExit(f"the loss is {held_out_loss} at step {step}; stopped")
        recent = []
        if held_out_loss < best:
            best = held_out_loss
            save_model(model, config, folder)
        saved = dict(tree_flatten({"model": model.parameters(), "optimizer": optimizer.state}))
        mx.save_safetensors(
            str(folder / "partial.safetensors"), saved, {"step": str(step), "best": str(best)}
        )
        (folder / "partial.safetensors").rename(checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--out", type=Path, help="folder of the run")
    task.add_argument("--write-text", type=Path, metavar="FILE", help="write the text, no more")
    parser.add_argument("--arch", choices=CONFIGS, default="fm")
    parser.add_argument(
        "--texts", type=Path, metavar="FOLDER", help="of texts.py (default: texts beside --out)"
    )
    parser.add_argument(
        "--only", nargs="+", choices=[text.name for text in texts.TEXTS], metavar="NAME",
        help="train on these texts alone",
    )  # fmt: skip
    parser.add_argument(
        "--change", type=json.loads, default={}, metavar="JSON",
        help="to the config, such as '{\"num_memory_states\": 8}'",
    )  # fmt: skip
    parser.add_argument("--context", type=int, default=512, help="tokens of a window")
    parser.add_argument("--steps", type=int, default=4000, help="of batch x context tokens")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=6e-3)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--report-every", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    keep_freed_memory()
    if args.write_text:
        with tempfile.TemporaryDirectory() as folder:
            whole = "".join(texts.fetch(texts.TEXTS[0], Path(folder)))
        args.write_text.write_text(whole, encoding="utf-8")
    else:
        train(args)


if __name__ == "__main__":
    main()
