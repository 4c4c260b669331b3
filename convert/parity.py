"""Is the converted model the model that was trained? Both read the same text.

The PyTorch reference gets the weights of the checkpoint, the MLX model is the converted
folder as any user will load it; the residual streams are compared block by block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from fm_mlx.convert.export import to_reference
from fm_mlx.convert.key_map import Weight
from fm_mlx.metal_kernels.chunk_scan import MAX_CHUNK
from fm_mlx.model import Model, ModelArgs
from fm_mlx.support.files import write_json
from fm_mlx.support.tables import aligned

# max |dlogit| that is allowed, by the dtype of the weights as converted: float32 rounding,
# and for 16 bits that of every layer's activations.
BOUNDS = {"float32": 1e-4, "float16": 5e-2, "bfloat16": 4e-1}

# Of the residual stream's difference, relative to its largest number; names the block at
# fault. Measured: 5e-7, 1e-3 and 1e-2.
STREAM_BOUNDS = {"float32": 2e-5, "float16": 1e-2, "bfloat16": 8e-2}

# Text in the public domain (King James Bible, Genesis 1 and Ecclesiastes 1) for models
# with a tokenizer; its bytes as token ids for those without.
TEXT = (
    "In the beginning God created the heaven and the earth. And the earth was without form, "
    "and void; and darkness was upon the face of the deep. And the Spirit of God moved upon "
    "the face of the waters. And God said, Let there be light: and there was light. And God "
    "saw the light, that it was good: and God divided the light from the darkness. Vanity of "
    "vanities, saith the Preacher, vanity of vanities; all is vanity. What profit hath a man "
    "of all his labour which he taketh under the sun? One generation passeth away, and another "
    "generation cometh: but the earth abideth for ever. The sun also ariseth, and the sun goeth "
    "down, and hasteth to his place where he arose. The wind goeth toward the south, and "
    "turneth about unto the north; it whirleth about continually, and the wind returneth again "
    "according to his circuits. All the rivers run into the sea; yet the sea is not full."
)
LENGTHS = (MAX_CHUNK // 2, 4 * MAX_CHUNK + 5)


@dataclass
class Parity:
    """What a comparison found; lengths and layers in order.

    Attributes:
        bound: The largest max |dlogit| that is allowed; None where a loss is reported instead.
        dtype: The dtype of the converted weights.
        lengths: How many tokens were read, each time.
        max_logit: The largest difference of a logit, by length.
        mean_logit: The mean difference, by length.
        kl: KL(reference || converted) in nats per token, by length.
        top1: The share of tokens whose likeliest successor is the same, by length.
        layers: The largest difference of the residual stream after the embedding and each block,
            relative to its largest number, at the greater length.
        loss: The loss on the text in nats per token, reference and converted, at the greater
            length.
    """

    bound: float | None
    dtype: str
    lengths: list[int]
    max_logit: list[float] = field(default_factory=list)
    mean_logit: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)
    layers: list[float] = field(default_factory=list)
    loss: tuple[float, float] = (math.nan, math.nan)

    @property
    def passed(self) -> bool:
        """Whether the bound holds; without a bound, whether the numbers are finite."""
        worst = max(self.max_logit)
        return math.isfinite(worst) and (self.bound is None or worst <= self.bound)

    @property
    def first_layer(self) -> int | None:
        """The first of `layers` above its bound: 0 is the embedding, i + 1 block i."""
        if self.dtype not in STREAM_BOUNDS:
            return None
        bound = STREAM_BOUNDS[self.dtype]
        return next((i for i, error in enumerate(self.layers) if not error <= bound), None)

    def write(self, path: Path) -> None:
        write_json(path, asdict(self) | {"passed": self.passed, "first_layer": self.first_layer})

    def lines(self) -> list[str]:
        """The report for people."""
        rows = [["tokens", "max |dlogit|", "mean", "KL nats/token", "same top-1"]]
        columns = (self.lengths, self.max_logit, self.mean_logit, self.kl, self.top1)
        for tokens, largest, mean, kl, top1 in zip(*columns, strict=True):
            rows.append([str(tokens), f"{largest:.1e}", f"{mean:.1e}", f"{kl:.1e}", f"{top1:.1%}"])
        layers = [f"{error:.0e}" for error in self.layers]
        reference, converted = self.loss
        allowed = "" if self.bound is None else f" (allowed: {self.bound:.0e})"
        verdict = "agrees with" if self.passed else "DIFFERS from"
        if self.passed and self.bound is None:
            verdict = "beside"
        lines = [
            f"The {self.dtype} model {verdict} the PyTorch reference{allowed}:",
            *aligned(rows),
            f"residual stream, embedding and blocks: {' '.join(layers)} of its largest number",
            f"loss on the text: {reference:.5f} and {converted:.5f} nats/token "
            f"({round(converted - reference, 5) + 0:+.5f})",
        ]
        if not self.passed:
            places = ["the embedding", *(f"block {i}" for i in range(len(self.layers) - 1))]
            first = self.first_layer
            where = "the last norm or the head" if first is None else places[first]
            lines.append(f"the first part to differ beyond rounding: {where}")
        return lines


def torch_is_there() -> bool:
    """Whether a comparison can be made."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True


def text_tokens(tokenizer: Any, vocab_size: int) -> list[int]:
    """TEXT as token ids, at least as many as the greater length; bytes without a tokenizer."""
    ids = list(TEXT.encode()) if tokenizer is None else tokenizer.encode(TEXT)
    ids = [i % vocab_size for i in ids]
    return (ids * (1 + LENGTHS[-1] // len(ids)))[: LENGTHS[-1] + 1]


def compare(
    weights: Mapping[str, Weight],
    args: ModelArgs,
    model: Model,
    tokens: list[int],
    *,
    dtype: str,
    bound: float | None,
) -> Parity:
    """Run the reference with the checkpoint's weights and the converted model.

    Args:
        weights: the weights of the checkpoint, under our names.
        args: the shape of both models.
        model: the converted one.
        tokens: one more than the greatest length, which is the last to be predicted.
        dtype: the dtype of the converted weights or "quantised", for the report.
        bound: on max |dlogit|.
    """
    reference = torch_model(weights, args)
    parity = Parity(bound, dtype, list(LENGTHS))
    for length in LENGTHS:
        wanted, wanted_stream = torch_outputs(reference, tokens[:length])
        got, stream = mlx_outputs(model, tokens[:length])
        difference = np.abs(got - wanted)
        parity.max_logit.append(float(difference.max()))
        parity.mean_logit.append(float(difference.mean()))
        log_p, log_q = _log_softmax(wanted), _log_softmax(got)
        parity.kl.append(float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean()))
        parity.top1.append(float((wanted.argmax(-1) == got.argmax(-1)).mean()))
        parity.layers = [
            float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-6))
            for a, b in zip(stream, wanted_stream, strict=True)
        ]
        successors = np.array(tokens[1 : length + 1])
        at = np.arange(length)
        parity.loss = (
            float(-log_p[at, successors].mean()),
            float(-log_q[at, successors].mean()),
        )
    return parity


def torch_model(weights: Mapping[str, Weight], args: ModelArgs) -> Any:
    """The reference with weights under our names, in float32."""
    import torch

    from fm_mlx.convert.torch_reference import Config, LanguageModel

    keys = Config.__dataclass_fields__
    model = LanguageModel(Config(**{key: getattr(args, key) for key in keys}))
    state = {
        name: torch.from_numpy(np.array(weight.read().astype(mx.float32)))
        for name, weight in to_reference(weights).items()
    }
    model.load_state_dict(state)
    return model.eval()


def torch_outputs(model: Any, tokens: list[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits (T, vocab) in float64, and the residual stream after each block."""
    import torch

    hidden: list[Any] = []
    with torch.no_grad():
        logits = model(torch.tensor([tokens]), hidden=hidden)
    return logits[0].double().numpy(), [x[0].double().numpy() for x in hidden]


def mlx_outputs(model: Model, tokens: list[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits (T, vocab) in float64, and the residual stream after each block."""
    stream = model.model.residual_streams(mx.array([tokens]))
    logits = model(mx.array([tokens]))
    return _wide(logits[0]), [_wide(x[0]) for x in stream]


def _wide(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32)).astype(np.float64)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
