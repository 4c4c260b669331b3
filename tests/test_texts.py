"""The texts of `examples/texts.py`: cleaning, pieces and the split, without a network."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import re
import shutil
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

# by its path: a folder of scripts is no package, and its names are those of folders here
SPEC = importlib.util.spec_from_file_location(
    "texts", Path(__file__).parents[1] / "examples" / "texts.py"
)
texts = sys.modules["texts"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(texts)

PROSE = """[A Title by Somebody 1800]

CHAPTER I


It was the _best_ of times,
it was the  worst of times.

`Yes,' said Anna,
who knew.

   A verse that stands alone,
   Another like the one

End of Project Gutenberg's A Title, by Somebody
LICENCE
"""

CLEAN_PROSE = """A Title by Somebody 1800

CHAPTER I

It was the best of times, it was the worst of times.
'Yes,' said Anna, who knew.
A verse that stands alone,
Another like the one

"""

VERSE = "Of things unseen  10\r\n....And deep,\r\n    that went on\r\n\r\n\r\nAmen \x1a\r\n"


def test_prose_becomes_a_line_a_paragraph():
    assert texts.clean(PROSE, prose=True) == CLEAN_PROSE


def test_verse_keeps_its_lines():
    assert texts.clean(VERSE, prose=False) == "Of things unseen\nAnd deep, that went on\n\nAmen\n\n"


def test_pieces_are_the_text_cut_at_ends_of_lines():
    lines = [f"{number} " + "word " * (number % 20) for number in range(2000)]
    text = "\n".join(line + "\n" * (number % 7 == 0) for number, line in enumerate(lines)) + "\n"
    found = texts.pieces(text)
    assert "".join(found) == text
    assert len(found) > 20
    assert all(piece.endswith("\n\n") for piece in found[:-1])  # parts are short here
    assert all(4096 <= len(piece) < 6144 for piece in found[:-1])


@pytest.mark.parametrize("first, held_out", [(20, [20, 40]), (10, [10, 30])])
def test_every_twentieth_piece_is_held_out(first: int, held_out: list[int]):
    every = [f"{number}\n" for number in range(1, 46)]
    training, held = texts.split(every, first)
    assert [int(line) for line in held.split()] == held_out
    assert sorted(training.split() + held.split()) == sorted("".join(every).split())


def test_chapters_have_a_verse_a_line():
    verses = [("Genesis", 1, "In the beginning."), ("Genesis", 1, "And."), ("Genesis", 2, "Thus.")]
    raw = "\n".join(json.dumps({"book": b, "chapter": c, "text": t}) for b, c, t in verses)
    assert texts.chapters(raw) == [
        "Genesis 1\n\nIn the beginning.\nAnd.\n\n",
        "Genesis 2\n\nThus.\n\n",
    ]


def test_the_table():
    names = [text.name for text in texts.TEXTS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[0-9a-f]{64}", text.sha256) for text in texts.TEXTS)
    assert all(text.package.licence.startswith("public domain") for text in texts.TEXTS)


@pytest.fixture
def made_up(tmp_path: Path) -> texts.Text:
    """A text whose package is in tmp_path already, in an archive that would write elsewhere."""
    package = texts.Package("PyPI", "made-up", "1.0", "../../{}.txt", "public domain")
    archive = tmp_path / "made-up" / "made-up-1.0.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as opened:
        member = tarfile.TarInfo("../../story.txt")
        member.size = len(PROSE.encode())
        opened.addfile(member, io.BytesIO(PROSE.encode()))
    digest = hashlib.sha256(texts.clean(PROSE, prose=True).encode()).hexdigest()
    return texts.Text("story", "A Story", package, texts.PROSE, "story", digest)


def test_a_text_is_read_without_extracting(made_up: texts.Text, tmp_path: Path):
    assert "".join(texts.fetch(made_up, tmp_path)) == texts.clean(PROSE, prose=True)
    assert [path.name for path in tmp_path.rglob("*.txt")] == []
    assert not (tmp_path.parents[1] / "story.txt").exists()


def test_another_text_than_that_of_the_table_is_refused(made_up: texts.Text, tmp_path: Path):
    with pytest.raises(ValueError, match="story has SHA-256"):
        texts.fetch(replace(made_up, sha256="0" * 64), tmp_path)
    with pytest.raises(ValueError, match=r"has no file ../../gone.txt"):
        texts.fetch(replace(made_up, files="gone"), tmp_path)


def test_what_needs_npm_is_left_out_without_it(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda program: None)
    assert texts.training_and_held_out(names=("blake",)) == {}
    assert "blake is left out" in capsys.readouterr().err


def test_a_folder_is_written_once(made_up: texts.Text, tmp_path: Path, monkeypatch):
    calls = []
    monkeypatch.setattr(texts, "TEXTS", (made_up,))
    monkeypatch.setattr(texts, "fetch", lambda text, folder: calls.append(text) or ["a\n"] * 12)
    folder = tmp_path / "to"
    first = texts.training_and_held_out(folder, ("story",))
    assert (
        first == texts.training_and_held_out(folder, ("story",)) == {"story": ("a\n" * 11, "a\n")}
    )
    assert len(calls) == 1
    assert sorted(path.name for path in folder.iterdir()) == [
        "story.heldout.txt",
        "story.train.txt",
    ]
