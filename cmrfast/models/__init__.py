"""Five published methods, by name; a method's module is imported when it is asked for."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import nn

__all__ = ["MODELS", "build", "method"]

_CLASSES = {
    "siamese_lesion": "SiameseLesion",
    "joint_scar": "JointScar",
    "joint_registration": "JointRegistration",
    "new_lesions": "NewLesions",
    "adversarial_transfer": "AdversarialTransfer",
}


class _Models(Mapping[str, type[nn.Module]]):
    def __getitem__(self, name: str) -> type[nn.Module]:
        found: type[nn.Module] = getattr(import_module(f"{__name__}.{name}"), _CLASSES[name])
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)

    def __contains__(self, name: object) -> bool:  # the inherited one would import the module
        return name in _CLASSES


#: The main class of every method by the method's name.
MODELS: Mapping[str, type[nn.Module]] = _Models()


def method(name: str) -> ModuleType:
    """The module of a method: its ``Config``, its main class, its ``loss``.

    Args:
        name: a key of ``MODELS``.
    """
    if name not in MODELS:
        raise ValueError(f"build: name must be one of {', '.join(MODELS)}; got {name!r}")
    return import_module(f"{__name__}.{name}")


def build(name: str, **changes: Any) -> nn.Module:
    """A method's network as published, or with some fields of its ``Config`` changed.

    Args:
        name: a key of ``MODELS``.
        changes: fields of the method's ``Config``.

    Returns:
        The network, its parameters drawn from torch's global random state.

    Example:
        >>> model = build("siamese_lesion", variant="siamese")
        >>> sum(p.numel() for p in model.parameters())
        9092706
    """
    config = method(name).Config
    known = [field.name for field in fields(config)]
    for change in changes:
        if change not in known:
            raise ValueError(f"{name}: fields are {', '.join(known)}; got {change!r}")
    return MODELS[name](config(**changes))
