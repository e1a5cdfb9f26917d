"""Source files that a page links to, such as ``../cmrfast/losses.py``, become part of the site."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_LINK = re.compile(r"\]\(\.\./((?:cmrfast|csrc|tests)/[\w./-]+)\)")
_ROOT = Path(__file__).parent.parent


def on_files(files: Files, *, config: Any) -> Files:
    """Called by MkDocs with all files of the site."""
    linked = {path for page in files.documentation_pages() for path in _links(page.content_string)}
    for path in sorted(linked):
        content = (_ROOT / path).read_text("utf-8")
        files.append(File.generated(config, _place(path), content=content))
    return files


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Called by MkDocs for every page."""
    return _LINK.sub(lambda link: f"]({_place(link[1])})", markdown)


def _links(markdown: str) -> list[str]:
    return _LINK.findall(markdown)


def _place(path: str) -> str:
    """Where the site has a file: browsers show text, and would download a Python file."""
    return f"source/{path}.txt"
