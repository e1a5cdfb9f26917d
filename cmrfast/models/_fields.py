"""Fields of a Config or Recipe that somebody else names: each must exist and be of its type."""

from collections.abc import Mapping
from dataclasses import fields
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cmrfast.errors import did_you_mean

_NUMBERS: dict[Any, type] = {int: Integral, float: Real}
_KINDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}


def require_fields(who: str, values: Mapping[str, Any], *kinds: type[Any]) -> None:
    """Raise unless every name is a field of one of the dataclasses and its value has its type."""
    hints: dict[str, Any] = {}
    for kind in kinds:
        known = get_type_hints(kind)
        hints |= {field.name: known[field.name] for field in fields(kind)}
    for name, value in values.items():
        if name not in hints:
            raise ValueError(
                f"{who}: fields are {', '.join(hints)}; got {name!r}{did_you_mean(name, hints)}"
            )
        if not _fits(value, hints[name]):
            raise TypeError(f"{who}: {name} must be {in_words(hints[name])}; got {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return isinstance(value, str)  # which ones are allowed is for the dataclass to say
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        if arguments[1:] == (...,):
            return all(_fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if hint in _NUMBERS:
        return isinstance(value, _NUMBERS[hint]) and not isinstance(value, bool)
    return isinstance(value, hint)


def in_words(hint: Any) -> str:
    """The values that a type hint allows."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " or ".join(map(in_words, arguments))
    if origin is tuple:
        count = "" if arguments[1:] == (...,) else f"{len(arguments)} "
        return f"{count}{_KINDS[arguments[0]]}s"
    if hint in _NUMBERS:
        return f"a {_KINDS[hint]}"
    return "none" if hint is NoneType else _KINDS[hint]
