"""The documents say what is there: commands, options, files, links, and measured figures."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
from functools import cache
from itertools import pairwise

import pytest
from documents import ROOT, Document, cells, commands_in, documents, tables

from fm_mlx.commands.cli import COMMANDS, MLX_LM_COMMANDS

DOCUMENTS = documents()
# what changed may be about what is no longer there
CURRENT = [document for document in DOCUMENTS if document.name != "CHANGELOG.md"]

every = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
every_current = pytest.mark.parametrize("document", CURRENT, ids=lambda document: document.name)

NUMBER = r"[*-]*\d[\d,]*(\.\d+)?(e-?\d+)?( ?(x|%|[mu]?s|[kMG]?B|nats|tokens/s))?\**"
MEASURED = re.compile(rf"{NUMBER}(, {NUMBER})?( \(.*\))?")

# Tables of numbers in sections that name no command.
NOT_MEASURED: dict[tuple[str, str], str] = {
    ("CONTRIBUTING.md", "The house"): "the floors are numbered",
}


@cache
def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"fm-mlx {command}")
    importlib.import_module(f"fm_mlx.commands.{command}").add_arguments(parser)
    return parser


def tasks_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The tasks of a command by name, those of `fm-mlx memory` for example."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def wrong_with(words: list[str]) -> str | None:
    """What is wrong with a command that a document names; None if nothing is."""
    program, *rest = words
    if program.startswith("python") and rest[:2] == ["-m", "fm_mlx"]:
        program, rest = "fm-mlx", rest[2:]
    if program == "fm-mlx":
        return wrong_with_ours(rest)
    if program == "pytest":
        paths = [word for before, word in zip([program, *rest], rest, strict=False)
                 if not word.startswith("-") and before not in ("-m", "-k", "-n")]  # fmt: skip
        missing = [path for path in paths if not (ROOT / path.split("::")[0]).exists()]
        return f"no {missing[0]}" if missing else None
    return wrong_with_script(rest)


def wrong_with_ours(words: list[str]) -> str | None:
    if not words or words[0] == "X" or words[0] in MLX_LM_COMMANDS or words[0] == "--version":
        return None
    if words[0] not in COMMANDS:
        return f"no command {words[0]}"
    parser = parser_of(words[0])
    words = words[1:]
    while tasks := tasks_of(parser):
        if not words or words[0] == "--help":
            return None
        if words[0] not in tasks:
            return f"no task {words[0]}"
        parser, words = tasks[words[0]], words[1:]
    known = parser._option_string_actions
    for word, following in pairwise([*words, ""]):
        option = word.split("=")[0]
        if not re.match(r"--?[a-zA-Z]", option):
            continue
        if option not in known:
            return f"no option {option}"
        choices = known[option].choices
        if choices and not following.isupper() and following not in map(str, choices):
            return f"{option} {following} is not one of {list(choices)}"
    return None


def wrong_with_script(words: list[str]) -> str | None:
    if not words or not words[0].endswith(".py"):
        return None  # python -m venv, for example
    path = ROOT / words[0]
    if not path.is_file():
        return f"no {words[0]}"
    text = path.read_text("utf-8")
    options = [word.split("=")[0] for word in words[1:] if word.startswith("--")]
    unknown = [option for option in options if f'"{option}"' not in text]
    return f"{words[0]} has no {unknown[0]}" if unknown else None


@every_current
def test_commands_are_there(document: Document):
    wrong = {" ".join(words): wrong_with(words) for words in document.commands}
    assert {command: what for command, what in wrong.items() if what} == {}


@pytest.mark.parametrize(
    "line",
    [
        "fm-mlx remember book.txt",
        "fm-mlx memory forget book.memory",
        "fm-mlx memory read book.txt --out book.memory",
        "fm-mlx lora --batching heap",
        "python -m fm_mlx lora --rank 3",
        "python examples/nothing.py",
        "FM_MLX_KERNELS=ops python examples/finetune.py --nothing",
        ".venv/bin/pytest tests/test_nothing.py",
        "true && pytest -m slow tests/nothing",
    ],
)
def test_wrong_commands_are_found(line):
    assert [bool(wrong_with(words)) for words in commands_in(line)] == [True]


def test_commands_are_seen():
    """In blocks, in sentences over the end of a line, behind prompts, with what they do beside."""
    text = (
        "See `fm-mlx memory\nread`.\n\n    fm-mlx plan     say what it needs\n\n"
        "```\n$ cd x && fm-mlx bench \\\n    --rounds 3 # three\nfm\n```\n\n"
        "<!-- made by: python a.py b -->\n"
    )
    assert sorted(Document("x.md", text).commands) == [
        ["fm-mlx", "bench", "--rounds", "3"],
        ["fm-mlx", "memory", "read"],
        ["fm-mlx", "plan"],
        ["python", "a.py", "b"],
    ]


@cache
def options_of_all() -> set[str]:
    """The options of all commands and scripts."""
    found, waiting = {"--help", "--version"}, [parser_of(command) for command in COMMANDS]
    while waiting:
        parser = waiting.pop()
        found |= set(parser._option_string_actions)
        waiting += tasks_of(parser).values()
    for folder in ("examples", "evidence", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            found |= set(re.findall(r'"(--[a-z][a-z0-9-]*)"', path.read_text("utf-8")))
    return found


@every_current
def test_options_in_sentences_are_there(document: Document):
    named = {span.split()[0].split("=")[0] for span in document.spans if span.startswith("--")}
    assert named - options_of_all() == set()


@every_current
def test_files_in_sentences_are_there(document: Document):
    """Of those with a folder; names in capitals stand for others."""
    places = [(ROOT / document.name).parent, ROOT, ROOT / "fm_mlx"]
    pattern = r"(?!runs/|.*[A-Z]{2})[\w.-]+(/[\w.*-]+)*/[\w.*-]+\.(py|md|metal|h|json|csv|png)"
    named = {span for span in document.spans if re.fullmatch(pattern, span)}
    missing = {name for name in named if not any(list(place.glob(name)) for place in places)}
    assert missing == set()


@every
def test_links_lead_somewhere(document: Document):
    anchors = {(ROOT / other.name).resolve(): other.anchors for other in DOCUMENTS}
    broken = []
    for _, target in document.links:
        path, _, anchor = target.partition("#")
        own = (ROOT / document.name).resolve()
        full = (own.parent / path).resolve() if path else own
        if not full.exists() or (anchor and anchor not in anchors.get(full, ())):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize(
    ("command", "table"),
    [made for document in DOCUMENTS for made in document.made_tables],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tables_are_what_their_commands_print(command, table):
    (words,) = commands_in(command)
    assert words[0] == "python", "a table that takes long to make comes from a file of results"
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert table == cells(done.stdout)


@every
def test_figures_say_how_they_are_made(document: Document):
    without = []
    for target, around in document.figures:
        if not any(True for _ in Document(target, around).commands):
            without.append(target)
    assert without == document.loose_comments == []


def test_numbers_say_how_they_were_measured():
    """A table of numbers stands in a section that names the command they come from."""
    without = set()
    for document in CURRENT:
        for heading, text in document.sections:
            numbers = [
                cell
                for rows in tables(text)
                for row in rows[1:]
                for cell in row
                if MEASURED.fullmatch(cell)
            ]
            if numbers and not any(True for _ in Document(heading, text).commands):
                without.add((document.name, heading))
    assert without == set(NOT_MEASURED)


def results(name: str) -> dict:
    return json.loads((ROOT / f"evidence/results/{name}.json").read_text("utf-8"))


def short(number: float) -> str:
    """Two digits, as 1.5e-7."""
    return f"{number:.1e}".replace("e-0", "e-")


def questions() -> list[str]:
    book = results("questions")["book"]
    asked = book["first token after a memory from its file, ms"].values()
    read = book["first token after reading again, s"]
    return [
        f"{min(asked):.0f} to {max(asked):.0f} ms, and {min(read):.0f} to {max(read):.0f} s",
        f"{round(book['ratio of medians'], -2):,} times",
    ]


def rounding() -> list[str]:
    found = results("rounding")
    once, often = found["rounded once"], found["rounded at every 2,048 tokens"]
    loss, distance = "difference of losses, nats/token", "distance of the states, of their length"
    (first, *_, last), (*_, last_often) = once[distance].values(), often[distance].values()
    return [
        f"Over {found['tokens']:,} tokens",
        f"by {short(once[loss])} nats per token, and by {short(abs(often[loss]))}",
        f"by {first:.1%} of their length at first, then by {last:.2%} and {last_often:.1%}",
    ]


def soak() -> list[str]:
    found = results("soak")
    differ = {3: "three"}[len(found["seeded_that_differ"])]
    before, after = found["resident_MB_after_warm_up_and_in_the_end"]
    return [
        f"of {found['greedy']:,} greedy answers all are those given alone",
        f"of {found['seeded']:,} seeded ones {differ} differ",
        f"grew from {before:.0f} to {after:.0f} MB",
    ]


def speculative() -> list[str]:
    passes = results("speculative")["pass_milliseconds"]
    packaged, draft, wide = passes["packaged"], passes["draft"], passes["wide"]
    return [
        f"takes {packaged['2'] / packaged['1']:.1f} times as long as one over one token",
        f"takes {draft['1'] / packaged['1']:.0%} of one of the model",
        f"takes {wide['1']:.1f} ms for a pass over one token and {wide['4']:.1f} ms over four",
    ]


@pytest.mark.parametrize(
    ("document", "sentences"),
    [
        ("memories", questions),
        ("memories", rounding),
        ("server", soak),
        ("performance", speculative),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_sentences_say_what_was_measured(document, sentences):
    text = " ".join((ROOT / f"docs/{document}.md").read_text("utf-8").split())
    assert [sentence for sentence in sentences() if sentence not in text] == []
