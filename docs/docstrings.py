"""Docstrings as the site reads them: they are written for ``help()``, the site reads Markdown."""

import re
from typing import Any

import griffe

_CHANGES = {
    r"^Example:$": "Examples:",  # the one name of that section that keeps its code as code
    r"^::\n": "",  # what follows is indented, hence code already
}
#: An entry for several arguments at once, with the lines that go on further in.
_SHARED = re.compile(r"^( +)(\w+(?:, \w+)+)(: .*(?:\n\1 +\S.*)*)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Turns what Markdown would read otherwise."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every object once its members are known."""
        if obj.docstring is not None:
            text = obj.docstring.value
            for pattern, instead in _CHANGES.items():
                text = re.sub(pattern, instead, text, flags=re.MULTILINE)
            obj.docstring.value = _SHARED.sub(_one_each, text)


def _one_each(entry: re.Match[str]) -> str:
    indent, names, text = entry.groups()
    return "\n".join(indent + name + text for name in names.split(", "))
