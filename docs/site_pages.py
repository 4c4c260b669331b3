"""Documents of the repository as pages of the site, a hook of MkDocs (mkdocs.yml).

Documents link to files by their paths in the repository, so that links hold in a checkout and
wherever the repository is shown. MkDocs knows what is in docs/ alone. Here every file elsewhere
that a page links to becomes a page or a file under repository/, and the links are turned there:
Markdown as it is, Python as a page that shows it, all else as a file.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
DOCS = "docs/"
MOUNT = "repository/"

# [text](target#anchor) and ![text](target), of which the target and what follows it
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config) -> Files:
    """Add what stands elsewhere: the pages of the navigation, and what any page links to."""
    mounted = re.findall(rf"{MOUNT}[^'\"]+\.md", str(config.nav))
    waiting = [uri.removeprefix(MOUNT) for uri in mounted]
    for page in files.documentation_pages():
        waiting += _targets(DOCS + page.src_uri, page.content_string)
    while waiting:
        path = waiting.pop()
        uri = _uri(path)
        if uri.startswith(MOUNT) and uri not in files.src_uris:
            files.append(_file(path, uri, config))
            if path.endswith(".md"):
                waiting += _targets(path, (ROOT / path).read_text(encoding="utf-8"))
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Turn the links of a page to where the site has their targets."""
    uri = page.file.src_uri
    own = uri.removeprefix(MOUNT) if uri.startswith(MOUNT) else DOCS + uri

    def turned(link: re.Match) -> str:
        path = _resolved(own, link[1])
        if not (ROOT / path).is_file():
            return link[0]  # MkDocs says that it is broken
        return posixpath.relpath(_uri(path), posixpath.dirname(uri)) + link[2]

    return LINK.sub(turned, markdown)


def _targets(own: str, markdown: str) -> list[str]:
    paths = [_resolved(own, target) for target, _ in LINK.findall(markdown)]
    return [path for path in paths if (ROOT / path).is_file()]


def _resolved(own: str, target: str) -> str:
    """The path in the repository of a link's target in the document `own`."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(own), target))


def _uri(path: str) -> str:
    """Where MkDocs has a file of the repository."""
    if path.startswith(DOCS):
        return path.removeprefix(DOCS)
    return MOUNT + path + (".md" if path.endswith(".py") else "")


def _file(path: str, uri: str, config) -> File:
    if not path.endswith(".py"):
        return File.generated(config, uri, abs_src_path=str(ROOT / path))
    code = (ROOT / path).read_text(encoding="utf-8")
    return File.generated(config, uri, content=f"# {path}\n\n``````python\n{code}``````\n")
