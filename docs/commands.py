"""Replaces ``<!-- help COMMAND -->`` in a page by the output of ``cmrfast COMMAND --help``."""

import re
from typing import Any

from typer.testing import CliRunner

from cmrfast.cli.app import app


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Called by MkDocs for every page."""
    return re.sub(r"<!-- help ([\w ]*) -->", _help, markdown)


def _help(asked: re.Match[str]) -> str:
    words = [*asked[1].split(), "--help"]
    shown = CliRunner().invoke(app, words, prog_name="cmrfast", env={"COLUMNS": "88"})
    if shown.exit_code:
        raise ValueError(f"commands: cmrfast has no command {asked[1]}")
    return f"```text\n{shown.output.strip()}\n```"
