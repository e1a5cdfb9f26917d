"""HTML pages that need no other file: the frame, its styles and scripts, and inline pictures."""

import base64
import html
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from cmrfast.printable import printable

#: A page may use what is in it and nothing else: the browser refuses every request.
_POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src data: blob:; font-src data:"
)
RESEARCH = "For research only. Not a medical device; not for use on patients."


def document(
    title: str, body: str, *, styles: Sequence[str] = (), scripts: Sequence[str] = ()
) -> str:
    """A page.

    Args:
        title: text, escaped here.
        body: HTML.
        styles: names of style sheets among the assets; ``theme.css`` comes first.
        scripts: names of scripts among the assets, which run at the end of the page.
    """
    sheets = "\n".join(asset(name).decode() for name in ("theme.css", *styles))
    code = "".join(f"<script>{asset(name).decode()}</script>" for name in scripts)
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        f'<meta http-equiv=Content-Security-Policy content="{_POLICY}">'
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        "<meta name=color-scheme content='light dark'>"
        f"<title>{text(title)}</title><style>\n{sheets}</style></head>\n"
        f"<body>{body}\n{code}</body></html>\n"
    )


def asset(name: str) -> bytes:
    """A file of ``cmrfast/runs/assets``, by its path in there."""
    return files("cmrfast.runs").joinpath("assets", *name.split("/")).read_bytes()


def text(value: Any) -> str:
    """A line as text of a page or of an attribute in quotes; control characters are escaped.

    Example:
        >>> text("a < b")
        'a &lt; b'
    """
    return html.escape(printable(value))


def inline_png(picture: bytes) -> str:
    """A PNG as the source of an ``img``."""
    return "data:image/png;base64," + base64.b64encode(picture).decode()
