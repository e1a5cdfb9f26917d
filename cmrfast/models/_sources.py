"""What a Config or Recipe says about its fields in its own text: comments and docstring."""

import ast
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from cmrfast.models._fields import in_words


@dataclass(frozen=True)
class FieldText:
    """One field, in words.

    Args:
        name: of the field.
        kind: what its values are.
        default: as the command would be given it.
        source: where the default comes from: the comment behind the field.
        meaning: its entry in the docstring.
    """

    name: str
    kind: str
    default: str
    source: str
    meaning: str


def field_texts(values: Any) -> dict[type[Any], list[FieldText]]:
    """The fields of a Config or Recipe by the class that sets them, base classes first.

    Args:
        values: with their defaults.
    """
    kind = type(values)
    hints = get_type_hints(kind)
    classes = [each for each in reversed(kind.__mro__) if "__annotations__" in vars(each)]
    owners = {name: each for each in classes for name in vars(each)["__annotations__"]}
    texts: dict[type[Any], list[FieldText]] = {each: [] for each in classes}
    for field in fields(kind):
        name = field.name
        texts[owners[name]].append(
            FieldText(
                name,
                in_words(hints[name]),
                _as_option(getattr(values, name)),
                _comments(owners[name]).get(name, ""),
                next(filter(None, (_meanings(c).get(name) for c in reversed(classes))), ""),
            )
        )
    return {each: found for each, found in texts.items() if found}


def _comments(kind: type[Any]) -> Mapping[str, str]:
    """Field → the comment behind it, or else the comment lines above it."""
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):  # a class that was made without a file
        return {}
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    lines = {token.start[0]: token.string.lstrip("# ") for token in comments}
    alone = {t.start[0] for t in comments if not t.line[: t.start[1]].strip()}
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above = lines[node.lineno - 1] if node.lineno - 1 in alone else ""
            texts[node.target.id] = lines.get(node.end_lineno or node.lineno, above)
    return texts


def _meanings(kind: type[Any]) -> Mapping[str, str]:
    """Field → its entry among the docstring's arguments."""
    _, _, arguments = (inspect.getdoc(kind) or "").partition("Args:\n")
    entries = re.findall(r"^    (\w[\w, ]*): (.*(?:\n     +\S.*)*)", arguments, re.MULTILINE)
    return {
        name: " ".join(text.replace("``", "").split())
        for names, text in entries
        for name in names.split(", ")
    }


def _as_option(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_as_option, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
