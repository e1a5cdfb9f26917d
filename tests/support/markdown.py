"""Blocks of code in Markdown pages, and how tests run them."""

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from cmrfast import cli

_FENCE = re.compile(
    r"(?:^<!-- (?P<slow>slow|not run: (?P<why>.+)) -->\n)?"
    r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$',
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        page: that holds it.
        line: of the page where its text begins, from 1.
        language: as written behind the fence.
        title: name of the file that the block is, or changes.
        text: between the fences.
        not_run: why it is not run, from a comment above it.
        slow: it takes seconds, says a comment above it.
    """

    page: Path
    line: int
    language: str
    title: str | None
    text: str
    not_run: str | None
    slow: bool

    @property
    def commands(self) -> list[list[str]]:
        """A bash block's lines as words, comments left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page in order, of some languages or of all."""
    text = page.read_text("utf-8")
    found = []
    for m in _FENCE.finditer(text):
        line = text.count("\n", 0, m.start("text")) + 1
        found.append(
            Block(page, line, m["language"], m["title"], m["text"], m["why"], m["slow"] == "slow")
        )
    return [block for block in found if not languages or block.language in languages]


def run_python(block: Block, namespace: dict) -> None:
    """Execute a block; errors name the line of the page."""
    code = "\n" * (block.line - 1) + block.text
    exec(compile(code, str(block.page), "exec"), namespace)


def run_bash(block: Block, patch: pytest.MonkeyPatch) -> None:
    """Call the command in this process for every line of a block."""
    for words in block.commands:
        assert words[0] == "cmrfast", f"{block}: {words[0]} is not run; say why above the block"
        patch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert not left.value.code, f"{block}: {shlex.join(words)} exits with {left.value.code}"
