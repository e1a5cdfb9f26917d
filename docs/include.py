"""Replaces ``<!-- include FILE -->`` in a page by a Markdown file of the source, without its title.

``<!-- include FILE#section -->`` inserts one section of it, without its heading. A link on the line
below, for readers of the page's source, is replaced as well. Links in the text are followed: to
pages of the site, to pictures, which become part of it, and to other files, which are shown as
text.
"""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_INCLUDE = re.compile(r"<!-- include ([\w./-]+)(?:#([\w-]+))? -->(?:\n\[[^\]]+\]\([^)]+\))?")
_LINK = re.compile(r"\]\(([\w./-]+)(#[\w-]*)?\)")
_ROOT = Path(__file__).parent.parent
_DOCS = _ROOT / "docs"


def on_files(files: Files, *, config: Any) -> Files:
    """Called by MkDocs with all files of the site; adds what included text links to."""
    including = _including(files)
    for source, section in including:
        for target, _ in _LINK.findall(_text(source, section)):
            path = (source.parent / target).resolve()
            if _page(including, path) or path.is_relative_to(_DOCS) or not path.is_file():
                continue
            if files.get_file_from_path(_place(path)) is None:
                files.append(File.generated(config, _place(path), content=path.read_bytes()))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: Any, files: Files) -> str:
    """Called by MkDocs for every page."""
    including = _including(files)
    folder = os.path.dirname(page.file.src_uri) or "."

    def insert(found: re.Match[str]) -> str:
        source = _ROOT / found[1]

        def follow(link: re.Match[str]) -> str:
            path = (source.parent / link[1]).resolve()
            if path.is_relative_to(_DOCS):
                target = path.relative_to(_DOCS).as_posix()
            else:
                target = _page(including, path) or _place(path)
            return f"]({os.path.relpath(target, folder)}{link[2] or ''})"

        return _LINK.sub(follow, _text(source, found[2]))

    return _INCLUDE.sub(insert, markdown)


def _including(files: Files) -> dict[tuple[Path, str | None], str]:
    """Included file and section → the page that includes them."""
    return {
        (_ROOT / name, section or None): page.src_uri
        for page in files.documentation_pages()
        for name, section in _INCLUDE.findall(page.content_string)
    }


def _page(including: dict[tuple[Path, str | None], str], path: Path) -> str | None:
    """The page that includes a file, or a section of it."""
    return next((page for (source, _), page in including.items() if source == path), None)


def _text(source: Path, section: str | None) -> str:
    """A file without its title, or a section of it without its heading."""
    text = source.read_text("utf-8")
    if section is None:
        return re.sub(r"\A# .*\n+", "", text)
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        if re.sub(r"\W+", "-", heading.lower()) == section:
            return body.strip()
    raise ValueError(f"include: {source} has no section {section}")


def _place(path: Path) -> str:
    """Where the site has a file: browsers show text, and would download a Python file."""
    place = f"source/{path.relative_to(_ROOT).as_posix()}"
    return place if path.suffix in (".png", ".svg") else f"{place}.txt"
