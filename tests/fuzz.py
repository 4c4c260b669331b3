"""Model folders with something wrong in them, made from a good one and a seed.

What is wrong comes from lists of nasty values and from what was once found to end in a
traceback, a hang, or text made of NaN.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**15, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**30, 10**400,
    -(2**63), 0.0, -0.0, 0.5, 1e-308, 1e-30, 1e30, 1e308, float("nan"), float("inf"),
    float("-inf"), "", "x", "64", "nan", "../../etc/passwd", "/dev/zero", "\x00", "é" * 1000, [],
    [1], [[]], [None], [{}], ["x"], {}, {"a": 1}, {"group_size": 64, "bits": 4},
    {"group_size": 2**70, "bits": "4"}, {"quant_method": "awq"}, {"quant_method": []},
    {"quantization_config": {"quant_method": "mxfp4"}}, {"quantization_config": 3},
]  # fmt: skip

CONFIG_KEYS = [
    "hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size", "memory_size",
    "num_memory_states", "num_active_states", "affinity_temperature", "rms_norm_eps",
    "memory_norm_eps", "tie_word_embeddings", "model_type", "quantization", "quantization_config",
    "text_config", "architectures", "model_file", "eos_token_id", "quantize_activations",
    "torch_dtype", "auto_map", "tokenizer_class", "bos_token_id", "rope_scaling", "dtype",
    "max_position_embeddings", "is_encoder_decoder", "num_attention_heads",
]  # fmt: skip

HOSTILE_TEMPLATES: list[Any] = [
    "{{ ''.__class__.__mro__ }}", "{% for m in messages %}", "{{ messages[99].content }}", "{{",
    "{% include 'x' %}", "{{ 1/0 }}", "{{ raise_exception('no') }}", "{{ 'a' * 10**7 }}",
    "no template at all", "", 3, 1.5, True, [], ["x"], {}, {"default": 3},
    [{"name": "default", "template": 3}], [{"name": "default", "template": "{{ x.y.z }}"}],
    "{{ messages | tojson(indent='x') }}", "{{ range(10**12) }}",
]  # fmt: skip

TOKENIZER_KEYS = [
    "tokenizer_class", "bos_token", "eos_token", "unk_token", "pad_token", "model_max_length",
    "chat_template", "add_bos_token", "added_tokens_decoder", "additional_special_tokens",
    "chat_template_type", "tool_parser_type", "clean_up_tokenization_spaces", "padding_side",
    "extra_special_tokens", "add_prefix_space", "auto_map",
]  # fmt: skip


def odd_config(folder: Path, rng: random.Random) -> str:
    """Change config.json; what was done."""
    path = folder / "config.json"
    kind = rng.randrange(20)
    if kind == 0:
        depth = rng.choice([100, 5000, 100_000])
        path.write_text(rng.choice(['{"a":', "["]) * depth)
        return f"nested {depth} deep"
    if kind == 1:
        text = path.read_text()
        at = rng.randrange(len(text))
        path.write_bytes(text[:at].encode() + rng.choice([b"", b"\xff", b"\x00", b'"', b"}"]))
        return f"cut at {at}"
    if kind == 2:
        path.write_text(json.dumps(rng.choice(NASTY)))
        return "another kind of JSON"
    config = json.loads(path.read_text())
    done = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        key = rng.choice(CONFIG_KEYS)
        if rng.random() < 0.1:
            config.pop(key, None)
            done.append(f"no {key}")
        else:
            config[key] = value = rng.choice(NASTY)
            done.append(f"{key} = {str(value)[:40]}")
    path.write_text(json.dumps(config))
    return ", ".join(done)


def damaged_weights(folder: Path, rng: random.Random) -> str:
    """Change the safetensors file or put others beside it; what was done."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)

    def write(text: str | bytes) -> None:
        text = text.encode() if isinstance(text, str) else text
        path.write_bytes(len(text).to_bytes(8, "little") + text + body)

    def entry(**changes: Any) -> str:
        header[name] |= changes
        write(json.dumps(header))
        return f"{name}: {str(changes)[:80]}"

    def twice() -> str:
        text = json.dumps(header)
        write(text[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}}}")
        return f"{name} twice"

    def overlapping() -> str:
        other = rng.choice(names)
        return entry(data_offsets=header[other]["data_offsets"], shape=header[other]["shape"])

    def not_finite() -> str:
        weights = mx.load(str(path))
        value = rng.choice([float("nan"), float("inf"), float("-inf")])
        weights[name] = mx.full(weights[name].shape, value, weights[name].dtype)
        mx.save_safetensors(str(path), weights, {"format": "mlx"})
        return f"{name} is {value}"

    def stray() -> str:
        other = rng.choice(["model-old.safetensors", "model-00001-of-00002.safetensors"])
        shutil.copyfile(path, folder / other)
        if rng.random() < 0.5:
            weight_map = dict.fromkeys(names, "model.safetensors")
            index = folder / "model.safetensors.index.json"
            index.write_text(json.dumps({"weight_map": weight_map}))
        return f"stray {other}"

    def index() -> str:
        content = rng.choice([*NASTY, {"weight_map": rng.choice(NASTY)}])
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))
        return f"index {str(content)[:60]}"

    def renamed() -> str:
        new = rng.choice(
            ["", "x", "model.layers.999999999.x", "model.layers.7.memory.router.weight", "\x00"]
        )
        header[new] = header.pop(name)
        write(json.dumps(header))
        return f"{name} is called {new!r}"

    def pipe() -> str:
        path.unlink()
        os.mkfifo(path)
        return "a named pipe"

    def cut() -> str:
        path.write_bytes(data[: rng.randrange(len(data))])
        return "cut"

    def flipped() -> str:
        at = rng.randrange(8 + size)
        path.write_bytes(data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :])
        return f"byte {at} of the header"

    def garbage() -> str:
        write(rng.choice([b"[" * 10000, b"{}", b"null", b"\xff\xfe", b'{"a": 3}']))
        return "another header"

    changes: list[Callable[[], str]] = [
        lambda: entry(dtype=rng.choice(["I32", "I64", "BOOL", "U8", "U32", "F64", "F8_E4M3", 3])),
        lambda: entry(shape=rng.choice([[], [2**40], [-1], [0], "x", None, [1.5], [2**63]])),
        lambda: entry(data_offsets=rng.choice([[0, 4], [0, 2**62], [4, 0], [-8, 0], None, []])),
        twice, overlapping, not_finite, not_finite, stray, index, renamed, pipe, cut, flipped,
        garbage,
    ]  # fmt: skip
    return rng.choice(changes)()


def odd_tokenizer(folder: Path, rng: random.Random) -> str:
    """Change the tokenizer's files; what was done."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    kind = rng.randrange(10)
    if kind == 0:
        target = folder / rng.choice(["tokenizer.json", "tokenizer_config.json"])
        target.unlink()
        os.mkfifo(target)
        return f"{target.name} is a named pipe"
    if kind == 1:
        target = folder / "tokenizer.json"
        text = target.read_text()
        target.write_text(text[: rng.randrange(len(text))])
        return "tokenizer.json is cut"
    if kind == 2:
        target = folder / "tokenizer.json"
        content = json.loads(target.read_text())
        key = rng.choice(list(content))
        content[key] = value = rng.choice(NASTY)
        target.write_text(json.dumps(content))
        return f"{key} of tokenizer.json = {str(value)[:40]}"
    if kind == 3:
        (folder / "chat_template.jinja").write_text(str(rng.choice(HOSTILE_TEMPLATES)))
        return "chat_template.jinja"
    if kind == 4:
        path.write_text("[" * rng.choice([10, 100_000]))
        return "tokenizer_config.json is nested"
    key = rng.choice(TOKENIZER_KEYS)
    if key == "chat_template" or rng.random() < 0.5:
        key, value = "chat_template", rng.choice(HOSTILE_TEMPLATES)
    else:
        value = rng.choice(NASTY)
    config[key] = value
    path.write_text(json.dumps(config))
    return f"{key} = {str(value)[:60]}"
