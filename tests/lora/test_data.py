"""Files that people write: what is read of them, and what is said of a bad one."""

from __future__ import annotations

import json
import re
import shutil
import sys
from types import SimpleNamespace

import pytest

import fm_mlx
from fm_mlx.commands import cli
from fm_mlx.lora.data import load_data
from fm_mlx.lora.options import Options


@pytest.fixture
def read(tmp_path, loaded):
    """The training examples of a folder whose train.jsonl has these lines."""

    def of(lines, tokenizer=loaded[1], **options):
        data = tmp_path / "data"
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir()
        if isinstance(lines, bytes):
            (data / "train.jsonl").write_bytes(lines)
        else:
            (data / "train.jsonl").write_text("\n".join(lines))
        return load_data(Options(data=str(data), **options), tokenizer)["train"]

    return of


def test_texts_end(read, loaded):
    tokenizer = loaded[1]
    (example,) = read(['{"text": "the river"}', "", "  "])
    assert example.tokens.tolist() == [*tokenizer.encode("the river"), tokenizer.eos_token_id]
    assert example.offset == 0


@pytest.mark.parametrize("mask_prompt", [False, True])
def test_completions_without_a_chat_template(mask_prompt, read, loaded):
    """mlx-lm wants a chat template even of a model that has none."""
    tokenizer = loaded[1]
    line = json.dumps({"prompt": "the river", "completion": " writes"})
    (example,) = read([line], mask_prompt=mask_prompt)
    prompt = tokenizer.encode("the river")
    assert example.tokens.tolist()[: len(prompt)] == prompt
    assert tokenizer.decode(example.tokens[len(prompt) : -1].tolist()) == " writes"
    assert example.tokens[-1] == tokenizer.eos_token_id
    assert example.offset == (len(prompt) if mask_prompt else 0)


@pytest.fixture
def chat(checkpoint, tmp_path):
    """A tokenizer with a chat template."""
    folder = tmp_path / "chat"
    shutil.copytree(checkpoint, folder)
    path = folder / "tokenizer_config.json"
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    return fm_mlx.load(folder)[1]


@pytest.mark.parametrize(
    "line",
    [
        {"messages": [{"role": "user", "content": "river"}, {"role": "assistant", "content": "x"}]},
        {"prompt": "river", "completion": "x"},
    ],
)
def test_chats_are_mlx_lms(line, read, chat):
    (example,) = read([json.dumps(line)], tokenizer=chat, mask_prompt=True)
    assert chat.decode(example.tokens.tolist()) == "[user]river[assistant]x"
    assert chat.decode(example.tokens[: example.offset].tolist()) == "[user]river[assistant]"


def test_a_text_file_is_cut_at_line_ends(tmp_path, loaded):
    path = tmp_path / "book.txt"
    path.write_text("".join(f"line {i}\n" for i in range(200)))
    splits = load_data(Options(data=str(path)), loaded[1])
    decode = loaded[1].decode
    texts = {name: decode(examples[0].tokens.tolist()) for name, examples in splits.items()}
    assert "".join(texts.values()) == path.read_text()
    assert all(text.endswith("\n") for text in texts.values())
    assert 0.88 < len(texts["train"]) / len(path.read_text()) < 0.92


def test_windows_cover_a_text_file(tmp_path, loaded):
    path = tmp_path / "book.txt"
    path.write_text("the river writes a long text " * 50)
    options = Options(data=str(path), batching="bucket", max_seq_length=16)
    examples = load_data(options, loaded[1])["train"]
    whole = loaded[1].encode(path.read_text())
    assert {len(example.tokens) for example in examples[:-1]} == {17}
    targets = [t for example in examples for t in example.tokens[1:].tolist()]
    assert targets == whole[1:]


@pytest.mark.parametrize("custom", [False, True])
def test_hub_data_is_mlx_lms(custom, loaded, monkeypatch):
    """Without a network: a stand-in for the package that fetches."""
    rows = {"train": [{"text": "the river"}] * 3, "test": [{"text": "a stone"}]}
    rows["valid"] = rows["train[-10%:]"] = [{"text": "the light"}]
    rows["train[:80%]"] = rows["train"]

    def load_dataset(path, split=None):
        assert path == "someone/something"
        return rows if split is None else rows[split]

    exceptions = SimpleNamespace(DatasetNotFoundError=KeyError)
    stand_in = SimpleNamespace(load_dataset=load_dataset, exceptions=exceptions)
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    where = dict(data="someone/something")
    if custom:
        where = dict(hf_dataset={"path": "someone/something", "test_split": "test"})
    found = load_data(Options(**where), loaded[1], ("train", "valid"))
    assert {name: len(examples) for name, examples in found.items()} == {"train": 3, "valid": 1}
    (example,) = load_data(Options(**where), loaded[1], ("test",))["test"]
    assert loaded[1].decode(example.tokens[:-1].tolist()) == "a stone"


BAD_LINES = {
    "not JSON": ('{"text": "a"}\n{"text": ', r"line 2: not a line of JSON"),
    "not UTF-8": (b'{"text": "a"}\n{"text": "\xff"}', r"line 2: not a line of JSON.*utf-8"),
    "a list": ('["a"]', r"line 1: a list; allowed is an object"),
    "no key": ('{"txt": "a"}', r"line 1: has txt; wanted: prompt and completion or messages or"),
    "empty object": ("{}", r"line 1: has no keys"),
    "another kind": ('{"text": "a"}\n\n{"prompt": "a"}', r"line 3: text is nothing"),
    "a number": ('{"text": "a"}\n{"text": 3}', r"line 2: text is int; wanted: str"),
    "empty": ('{"text": ""}', r"line 1: text is nothing; wanted: str, not empty"),
    "half a pair": ('{"prompt": "a"}', r"line 1: has prompt"),
    "messages that are text": ('{"messages": "hi"}', r"line 1: messages is str; wanted: list"),
    "messages without a template": ('{"messages": [{"role": "user"}]}', r"need a .* chat template"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_bad_lines_are_named(kind, read):
    content, message = BAD_LINES[kind]
    content = content if isinstance(content, bytes) else content.split("\n")
    with pytest.raises(ValueError, match=message):
        read(content)


def test_masked_prompts_of_plain_texts_are_refused(read):
    with pytest.raises(ValueError, match="Prompt masking not supported"):
        read(['{"text": "a b c"}'], mask_prompt=True)


def command(*argv) -> int:
    return cli.main(["lora", *map(str, argv)])


BAD_COMMANDS = {
    "no data": ([], "no data: give --data"),
    "data that is not there": (["--data", "nothing/here"], "nothing/here"),
    "no training set": (["--data", "{folder}"], "no examples to train on in"),
    "too many layers": (["--data", "{text}", "--num-layers", 3], "allowed are -1 .all. to 2"),
    "a layer too far": (
        ["--data", "{text}", "--fine-tune-type", "memory", "--memory-layers", 2],
        "memory_layers has 2; allowed are 0 to 1",
    ),
    "memory layers of another type": (["--data", "{text}", "--memory-layers", 1], "goes with"),
    "router of the memory": (
        ["--data", "{text}", "--fine-tune-type", "memory", "--train-router"],
        "train_router goes with",
    ),
    "no such type": (["--data", "{text}", "--fine-tune-type", "qlora"], "invalid choice: 'qlora'"),
    "iterations that do not accumulate": (
        ["--data", "{text}", "--iters", 3, "--grad-accumulation-steps", 2],
        "iters is 3; allowed are multiples of grad_accumulation_steps, 2",
    ),
    "an adapter that is not there": (
        ["--data", "{text}", "--resume-adapter-file", "nowhere"],
        "no adapter to begin with at nowhere",
    ),
    "a report that is not installed": (
        ["--data", "{text}", "--report-to", "wandb"],
        "wandb is not installed",
    ),
    "a report that there is not": (["--data", "{text}", "--report-to", "x"], "doesn't exist"),
    "a test without an adapter": (["--data", "{text}", "--test"], "no adapters at"),
    "an option that there is not": (["-c", "{unknown}"], r"no option lern; there are"),
    "alpha instead of scale": (["-c", "{alpha}"], "scale instead"),
    "a config that is none": (["-c", "{text}"], "allowed are options by name|is not YAML"),
    "a config that is not there": (["-c", "nowhere"], "no config at nowhere"),
    "a number that is a word": (["-c", "{word}"], "iters is 'many'; allowed are whole numbers"),
    "an optimizer's option": (["-c", "{optimizer}"], "optimizer_config of adam"),
}


@pytest.mark.parametrize("kind", BAD_COMMANDS)
def test_bad_commands_end_in_one_line(kind, checkpoint, text_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    files = {"text": text_file, "folder": tmp_path / "empty"}
    files["folder"].mkdir()
    for name, content in {
        "unknown": "data: x\nlern: 3",
        "alpha": f"data: {text_file}\nlora_parameters: {{alpha: 16}}",
        "word": f"data: {text_file}\niters: many",
        "optimizer": f"data: {text_file}\noptimizer_config: {{adam: {{speed: 3}}}}",
    }.items():
        files[name] = tmp_path / f"{name}.yaml"
        files[name].write_text(content)
    argv, message = BAD_COMMANDS[kind]
    argv = [str(word).format(**files) for word in argv]
    adapters = tmp_path / "adapters"
    status = command("--model", checkpoint, "--adapter-path", adapters, *argv)
    err = capsys.readouterr().err
    assert status == 2, err
    assert err.count("\n") == 1 and err.startswith("fm-mlx: error: ")
    assert re.search(message, err), err
    assert not (adapters / "adapters.safetensors").exists()


def test_config_file_and_options(checkpoint, text_file, tmp_path, capsys):
    """As mlx-lm: what the command line says goes before the file."""
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {checkpoint}\ndata: {text_file}\niters: 3\nbatch_size: 2\nlearning_rate: 1e-3\n"
        "max_seq_length: 32\nval_batches: 1\ntest: true\ntrain: true\ntest_batches: 1\n"
        "lora_parameters: {rank: 2, scale: 4.0, dropout: 0.0}\n"
    )
    folder = tmp_path / "adapters"
    assert command("-c", config, "--iters", 2, "--adapter-path", folder) == 0
    out = capsys.readouterr().out
    assert "held-out loss: " in out and "Test loss " in out
    written = json.loads((folder / "adapter_config.json").read_text())
    assert (written["iters"], written["batch_size"], written["learning_rate"]) == (2, 2, 1e-3)
    assert written["lora_parameters"]["rank"] == 2
    assert "memory.in_proj" in written["lora_parameters"]["keys"]
