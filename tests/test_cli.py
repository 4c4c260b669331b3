"""The command: what it prints, and that bad input ends in one line and status 2."""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import signal
import subprocess
import sys

import mlx.core as mx
import mlx_lm
import pytest
from in_step import in_step
from mlx_lm.models.cache import ArraysCache, make_prompt_cache, save_prompt_cache
from mlx_lm.sample_utils import make_sampler
from tiny import some_text

import fm_mlx
from fm_mlx import loading
from fm_mlx.commands import cli, reading
from fm_mlx.commands import generate as generate_command
from fm_mlx.commands.reading import FileText

PROMPT = ("-p", "the river")
TEXT_AND_REPORT = re.compile(r"={10}\n(.*)\n={10}\n(Prompt: .*)", re.DOTALL)


@pytest.fixture
def fm(capsys):
    """Runs the command in this process: (status, standard output, standard error)."""

    def run(*argv, stdin: bytes | None = None):
        before = sys.stdin
        if stdin is not None:
            sys.stdin = io.TextIOWrapper(io.BytesIO(stdin))
        try:
            status = cli.main([str(word) for word in argv])
        finally:
            sys.stdin = before
        return status, *capsys.readouterr()

    return run


def command(*argv) -> list[str]:
    return [sys.executable, "-m", "fm_mlx", *map(str, argv)]


def test_help_needs_no_mlx():
    code = (
        "import sys\nfrom fm_mlx.commands.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as done: assert done.code == 0\n"
        "assert not {'mlx', 'mlx_lm', 'transformers'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("generate", "chat", "server", "benchmark", "perplexity", "evaluate"):
        assert f"\n    {name}" in done.stdout


def test_version(capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"fm-mlx {fm_mlx.__version__}\n"


def test_generate_prints_text_and_report(fm, checkpoint, loaded):
    wanted = mlx_lm.generate(*loaded, "the river\n\twrites", max_tokens=9)
    options = ("generate", "--model", checkpoint, "-p", "the river\\n\\twrites", "-m", 9)
    status, out, err = fm(*options)
    assert (status, err) == (0, "")
    text, report = TEXT_AND_REPORT.fullmatch(out).groups()
    assert text == wanted
    count = len(loaded[1].encode("the river\n\twrites"))
    assert re.fullmatch(
        rf"Prompt: {count} tokens, [\d.]+ tokens-per-sec, [\d.]+ s\n"
        r"Generation: 9 tokens, [\d.]+ tokens-per-sec\n"
        r"Peak memory: [\d.]+ GB\n",
        report,
    )
    assert fm(*options, "--verbose", "False") == (0, wanted + "\n", "")


def test_sampling_is_that_of_mlx_lm(fm, checkpoint):
    mx.random.seed(5)  # loading draws from it too, in mlx-lm's command as in ours
    model, tokenizer = mlx_lm.load(str(checkpoint))
    sampler = make_sampler(0.9)
    wanted = mlx_lm.generate(model, tokenizer, "the river", max_tokens=20, sampler=sampler)
    options = (
        "generate",
        "--model",
        checkpoint,
        *PROMPT,
        "-m",
        20,
        "--verbose",
        "F",
        "--temp",
        0.9,
    )
    assert fm(*options, "--seed", 5) == (0, wanted + "\n", "")
    assert fm(*options, "--seed", 6)[1] != wanted + "\n"


def test_options_reach_the_sampler(fm, checkpoint, loaded, monkeypatch):
    calls = []

    def record(*args, **options):
        calls.append(inspect.signature(make_sampler).bind(*args, **options).arguments)
        return make_sampler()

    monkeypatch.setattr("mlx_lm.sample_utils.make_sampler", record)
    wanted = {"temp": 0.9, "top_p": 0.8, "min_p": 0.02, "top_k": 50, "min_tokens_to_keep": 2}
    wanted |= {"xtc_probability": 0.5, "xtc_threshold": 0.2}
    options = [
        word for name, value in wanted.items() for word in ("--" + name.replace("_", "-"), value)
    ]
    assert fm("generate", "--model", checkpoint, *PROMPT, "-m", 1, *options)[0] == 0
    _, tokenizer = loaded
    special = [*tokenizer.encode("\n"), *tokenizer.eos_token_ids]
    assert calls == [wanted | {"xtc_special_tokens": special}]


def test_file_and_standard_input_are_read_like_text(fm, checkpoint, loaded, tmp_path):
    text = some_text(30000).replace("\r\n", "\n")
    wanted = mlx_lm.generate(*loaded, text, max_tokens=9)
    path = tmp_path / "prompt.txt"
    path.write_text(text, newline="\r\n")
    base = ("generate", "--model", checkpoint, "-m", 9)
    with in_step():
        status, out, err = fm(*base, "--prompt-file", path)
    assert (status, err) == (0, "")
    found, report = TEXT_AND_REPORT.fullmatch(out).groups()
    assert found == wanted
    count = len(loaded[1].encode(text))
    assert count > 4096
    assert f"Prompt: {count} tokens" in report
    growth = re.search(r"\nMemory growth past 4k tokens: ([\d.]+) MB\n$", report)
    assert float(growth[1]) < 1
    for option in ("-p", "--prompt-file"):
        quiet = fm(*base, option, "-", "--verbose", "False", stdin=text.encode())
        assert quiet == (0, wanted + "\n", "")


def test_saved_state_is_gone_on_from(fm, checkpoint, loaded, tmp_path):
    model, tokenizer = loaded
    cache = make_prompt_cache(model)
    mx.eval(model(mx.array([tokenizer.encode("stone light")]), cache=cache))
    path = tmp_path / "state.safetensors"
    save_prompt_cache(str(path), cache, {"model": str(checkpoint), "tokenizer_config": "{}"})
    wanted = mlx_lm.generate(model, tokenizer, " river", max_tokens=9, prompt_cache=cache)
    options = ("generate", "--prompt-cache-file", path, "-p", " river", "-m", 9, "--verbose", "F")
    assert fm(*options) == (0, wanted + "\n", "")
    assert mlx_lm.generate(model, tokenizer, " river", max_tokens=9) != wanted
    status, _, err = fm(*options, "--model", "another")
    assert status == 2
    assert f"made by {checkpoint}, not by --model another" in err


def test_chat_template(fm, changed, tmp_path):
    folder = changed()
    path = folder / "tokenizer_config.json"
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())

    def text(name):
        return {"Sequence": {"id": name, "type_id": 0}}

    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, text("A")],
        "pair": [text("A"), text("B")],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    path.write_text(json.dumps(content))
    model, tokenizer = fm_mlx.load(folder)
    assert tokenizer.encode("a")[0] == tokenizer.bos_token_id
    said = "the river"
    (tmp_path / "said").write_text(said)
    base = ("generate", "--model", folder, "-m", 9, "--verbose", "F")

    def wanted(prompt, special=False):
        prompt = tokenizer.encode(prompt, add_special_tokens=special)
        return (0, mlx_lm.generate(model, tokenizer, prompt, max_tokens=9) + "\n", "")

    for prompt in (("-p", said), ("--prompt-file", tmp_path / "said")):
        assert fm(*base, *prompt) == wanted("user: the river\nassistant:")
        system = fm(*base, *prompt, "--system-prompt", "long")
        assert system == wanted("system: long\nuser: the river\nassistant:")
        assert fm(*base, *prompt, "--ignore-chat-template") == wanted(said, special=True)

    state = tmp_path / "state.safetensors"
    for prompt in (("-p", said), ("--prompt-file", tmp_path / "said")):
        # what stands before the user's text is in the saved state
        cache = make_prompt_cache(model)
        mx.eval(model(mx.array([tokenizer.encode("user: ")]), cache=cache))
        save_prompt_cache(str(state), cache)
        rest = tokenizer.encode("the river\nassistant:", add_special_tokens=False)
        text = mlx_lm.generate(model, tokenizer, rest, max_tokens=9, prompt_cache=cache)
        assert fm(*base, *prompt, "--prompt-cache-file", state) == (0, text + "\n", "")


@pytest.mark.parametrize(
    ("argv", "fact"),
    [
        (["generate", *PROMPT, "--model", "/nosuch/model"], "no model at /nosuch/model"),
        (["generate", *PROMPT, "--model", "nosuch/model"], "no model nosuch/model: neither a"),
        (["generate"], "one of the arguments --prompt/-p --prompt-file is required"),
        (["generate", "-p", ""], "the prompt is empty"),
        (["generate", *PROMPT, "--prompt-file", "x"], "not allowed with argument --prompt/-p"),
        (["generate", "--prompt-file", "/nosuch.txt"], "no prompt file /nosuch.txt"),
        (["generate", "--prompt-file", os.sep], "--prompt-file / is a folder"),
        (["generate", *PROMPT, "-m", "0"], "--max-tokens/-m: '0'; allowed are whole numbers from"),
        (["generate", *PROMPT, "--max-tokens", "-2"], "--max-tokens/-m: '-2'"),
        (["generate", *PROMPT, "--max-tokens", "many"], "--max-tokens/-m: 'many'"),
        (["generate", *PROMPT, "--temp", "-0.1"], "--temp: '-0.1'; allowed are numbers from 0"),
        (["generate", *PROMPT, "--temp", "nan"], "--temp: 'nan'"),
        (["generate", *PROMPT, "--top-p", "1.1"], "--top-p: '1.1'; allowed are numbers from 0 to"),
        (["generate", *PROMPT, "--top-p", "-1"], "--top-p: '-1'"),
        (["generate", *PROMPT, "--top-k", "-1"], "--top-k: '-1'; allowed are whole numbers from"),
        (["generate", *PROMPT, "--prefill-step-size", "0"], "--prefill-step-size: '0'"),
        (["generate", *PROMPT, "--seed", "x"], "--seed: 'x'"),
        (["generate", *PROMPT, "--nosuch"], "unrecognized arguments: --nosuch"),
        (["nosuch"], "invalid choice: 'nosuch'"),
        ([], "required: command"),
    ],
)
def test_bad_arguments(fm, argv, fact):
    refused(fm(*argv), fact)


def refused(done, *facts):
    status, out, err = done
    assert status == 2
    assert out == ""
    assert re.fullmatch(r"fm-mlx: error: [^\n]+\n", err)
    for fact in facts:
        assert fact in err


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"config": {"num_active_states": 9}}, "num_active_states is 9; allowed are 1 to 8"),
        ({"config": {"model_type": "llama"}}, "model_type is 'llama'"),
        ({"without": ["config.json"]}, "no config.json in"),
        ({"weights": {"model.norm.weight": None}}, "Missing 1 parameters: model.norm.weight"),
        ({"without": ["tokenizer.json"]}, "no tokenizer in"),
    ],
)
def test_bad_models(fm, changed, changes, fact):
    refused(fm("generate", "--model", changed(**changes), *PROMPT), fact)


def test_bad_prompts_and_options_of_a_good_model(fm, checkpoint, tmp_path):
    base = ("generate", "--model", checkpoint)
    refused(fm(*base, "-p", "-", stdin=b""), "the prompt is empty: standard input has no text")
    path = tmp_path / "prompt.txt"
    path.touch()
    refused(fm(*base, "--prompt-file", path), f"the prompt is empty: {path} has no text")
    path.write_bytes(b"river " * 20000 + b"\xe6\x9d" + b"river")
    refused(fm(*base, "--prompt-file", path), f"{path} is not UTF-8 text", "at byte 120000")
    refused(fm(*base, *PROMPT, "--adapter-path", "/nosuch"), "no adapters at /nosuch")
    refused(fm(*base, *PROMPT, "--prompt-cache-file", path), f"{path} is not a saved state")
    state = tmp_path / "state.safetensors"
    save_prompt_cache(str(state), [ArraysCache(1)])
    refused(fm(*base, *PROMPT, "--prompt-cache-file", state), "the state of 1 layers")
    refused(fm(*base, *PROMPT, "--top-k", "9999", "--temp", "1"), "`top_k` has to be an integer")
    refused(fm(*base, *PROMPT, "--system-prompt", "x"), "--system-prompt takes a chat template")


def test_errors_end_a_process_with_one_line(checkpoint):
    done = subprocess.run(
        command("generate", "--model", checkpoint, "-p", ""), capture_output=True, text=True
    )
    refused((done.returncode, done.stdout, done.stderr), "the prompt is empty")


def test_only_bad_input_becomes_a_line(monkeypatch, checkpoint):
    def broken(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(generate_command, "_generate", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["generate", *PROMPT])


def test_interrupt_is_quiet(fm, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate_command, "_generate", interrupted)
    assert fm("generate", *PROMPT) == (128 + signal.SIGINT, "", "")


def test_closed_pipe_is_quiet(checkpoint):
    with subprocess.Popen(
        command("generate", "--model", checkpoint, *PROMPT, "-m", 100000),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout.read(1) == b"="
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize("data", [b"a\r\nb\rc\n", "\u6771\u4eac naïve".encode(), b"x" * 100])
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_file_text(monkeypatch, data, size):
    monkeypatch.setattr(reading, "_READ_BYTES", size)
    text = FileText(io.BytesIO(data), "file", len(data))
    assert "".join(text) == io.TextIOWrapper(io.BytesIO(data), "utf-8").read()
    assert text.bytes_read == len(data)


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize(
    ("data", "offset"), [(b"ab\xffc", 2), (b"ab\xe6\x9dc", 2), (b"a\xe6\x9d", 1)]
)
def test_the_offset_of_a_wrong_byte(monkeypatch, data, offset, size):
    monkeypatch.setattr(reading, "_READ_BYTES", size)
    with pytest.raises(ValueError, match=f"file is not UTF-8 text: .* at byte {offset}$"):
        list(FileText(io.BytesIO(data), "file", None))


def test_progress_shows_on_a_terminal_only(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def shown(stream, file):
        monkeypatch.setattr(sys, "stderr", stream)
        progress = reading.Progress(file)
        monkeypatch.setattr(progress._bar, "delay", 0, raising=False)
        monkeypatch.setattr(progress._bar, "mininterval", 0, raising=False)
        with progress:
            progress(4000, None)
            assert progress.settled_peak is None
            if file is not None:
                file.bytes_read = 500
            progress(8000, None)
            assert progress.settled_peak is not None
        return stream.getvalue()

    def file():
        return FileText(io.BytesIO(), "file", 1000)

    assert shown(io.StringIO(), file()) == ""
    assert re.search(r"50%.*8,000 tokens, [\d,]+ tokens/s", shown(Terminal(), file()))
    assert "8000 tokens" in shown(Terminal(), None)


@pytest.mark.parametrize("name", cli.MLX_LM_COMMANDS)
def test_commands_of_mlx_lm_get_the_packaged_model(monkeypatch, checkpoint, name):
    monkeypatch.setattr(loading, "PRETRAINED", checkpoint)
    seen = []

    def main():
        seen.append(list(sys.argv))

    monkeypatch.setattr("mlx_lm.cli.main", main)
    before = list(sys.argv)
    assert cli.main([name, "--model", "theirs", "-h"]) == 0
    assert seen == [[f"fm-mlx {name}", name, "--model", str(checkpoint), "--model", "theirs", "-h"]]
    assert sys.argv == before


def test_benchmark_runs(fm, monkeypatch, checkpoint):
    monkeypatch.setattr(loading, "PRETRAINED", checkpoint)
    status, out, _ = fm("benchmark", "-p", 20, "-g", 3, "-n", 1)
    assert status == 0
    assert re.search(r"Averages: prompt_tps=[\d.]+", out)


def test_a_missing_package_is_named(fm, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "mlx_lm.evaluate", raising=False)
    refused(fm("evaluate", "--tasks", "x"), "evaluate needs the package lm_eval")


@pytest.mark.parametrize("argv", [["plan"], ["convert", "--help"]], ids=" ".join)
def test_commands_start_without_pytorch(argv):
    """transformers would import it; what is imported afterwards finds it again."""
    code = (
        "import sys, importlib.util\n"
        "from fm_mlx.commands.cli import main\n"
        "try:\n"
        f"    assert main({argv}) == 0\n"
        "except SystemExit as end:  # after --help\n"
        "    assert end.code == 0\n"
        "assert 'transformers' in sys.modules\n"
        "assert 'torch' not in sys.modules and importlib.util.find_spec('torch')\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)
