"""Converts docstrings, which are written for ``help()``, to the Markdown of the site."""

import re
from typing import Any

import griffe

_CHANGES = {
    r"^Example:$": "Examples:",  # the only section name whose code stays code
    r"^::\n": "",  # the indented block is code already
}
#: An entry for several arguments, with its continuation lines.
_SHARED = re.compile(r"^( +)(\w+(?:, \w+)+)(: .*(?:\n\1 +\S.*)*)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites what Markdown would misread."""

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
