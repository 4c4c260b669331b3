"""A tiny model's config, tokenizer and text."""

from __future__ import annotations

import json
import random

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CONFIG = {
    "model_type": "factorization_memory",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "vocab_size": 512,
    "memory_size": 64,
    "num_memory_states": 8,
    "num_active_states": 3,
    "tie_word_embeddings": False,
}

_TEXT = (
    "the of and memory row token writes reads state long text river stone light don't we'll "
    "naïve 東京 ÄÖ x1 42 3.14 (see) [a] -- !! ... ; : , ."
)
_WORDS = _TEXT.split()


def some_text(length: int, seed: int = 0) -> str:
    """Words, numbers, punctuation, runs of white space, characters no tokenizer has seen."""
    rng = random.Random(seed)
    gaps = [" "] * 12 + ["\n", "  ", "\n\n", "\t", " \n ", "\r\n", "\u00a0", ""]
    text = ""
    while len(text) < length:
        text += rng.choice(_WORDS) + rng.choice(gaps)
    return text[:length]


def train_tokenizer() -> Tokenizer:
    """Byte-fallback BPE over words with the space before them, as in the packaged model."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
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
    special = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"], special_tokens=special + byte_tokens, show_progress=False
    )
    tokenizer.train_from_iterator([some_text(20000)], trainer)
    # the trainer marks all of them special; bytes are ordinary tokens
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][: len(special)]
    return Tokenizer.from_str(json.dumps(content))
