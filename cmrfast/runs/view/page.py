"""The page of ``cmrfast view``: one case in a viewer."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cmrfast.atomic import atomic_write
from cmrfast.errors import FileError
from cmrfast.runs.document import RESEARCH, document, text
from cmrfast.runs.view.embed import SCRIPTS, STYLES, embed_scene, embed_viewer, page_notes
from cmrfast.runs.view.scene import Scene

#: Megabytes of volumes in a page; browsers open more, but slowly.
MOST_MB = 64


@dataclass(frozen=True)
class About:
    """What a page says about its scene.

    Args:
        subtitle: a line under the title.
        notes: sentences in a box, before that on the intended use.
    """

    subtitle: str
    notes: Sequence[str] = ()


def write_page(
    scene: Scene, out: str | os.PathLike[str], about: About, *, most_mb: float = MOST_MB
) -> Path:
    """Write the page of one scene.

    Args:
        scene: to be shown.
        out: the HTML file; its folder must exist.
        about: what the page says besides.
        most_mb: limit for the volumes in it, as they are stored in the page.

    Raises:
        FileError: the volumes take more, or the file cannot be written.
    """
    path = Path(out)
    viewer, size = embed_scene(scene, "case")
    megabytes = size / 1e6
    if megabytes > most_mb:
        raise FileError(
            f"view: the volumes of {scene.title} take {megabytes:.3g} MB in a page, more than "
            f"{most_mb:g}; a larger limit (--max-mb) or a single time point (--frame) may help"
        )
    body = (
        f"<div class=top><div><h1>{text(scene.title)}</h1>"
        f"<p class=subtitle>{text(about.subtitle)}</p></div>"
        f"<button class=theme type=button>Dark</button></div>{viewer}"
        f"{page_notes([*about.notes, RESEARCH])}{embed_viewer()}"
    )
    html = document(scene.title, body, styles=STYLES, scripts=["theme.js", *SCRIPTS])
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(html, "utf-8")
    except OSError as error:
        raise FileError(f"view: {path}: {error.strerror or error}") from error
    return path
