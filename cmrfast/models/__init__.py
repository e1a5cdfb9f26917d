"""The networks of five published methods by name; a module is imported on first use."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cmrfast.errors import did_you_mean
from cmrfast.models._fields import require_fields

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MODELS", "build"]

#: The only list of methods: name → network class in ``cmrfast.models.<name>``.
_CLASSES = {
    "siamese_lesion": "SiameseLesion",
    "joint_scar": "JointScar",
    "joint_registration": "JointRegistration",
    "new_lesions": "NewLesions",
    "adversarial_transfer": "AdversarialTransfer",
}


class _Models(Mapping[str, "type[nn.Module]"]):
    def __getitem__(self, name: str) -> "type[nn.Module]":
        model: type[nn.Module] = _load(name, _CLASSES[name])
        return model

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)

    def __contains__(self, name: object) -> bool:  # Mapping's own would import the module
        return name in _CLASSES


#: The network class of each method by name; reading the names does not import torch.
MODELS: "Mapping[str, type[nn.Module]]" = _Models()


def build(name: str, **changes: Any) -> "nn.Module":
    """Build a method's network as published, or with some fields of its ``Config`` changed.

    Args:
        name: a key of ``MODELS``.
        changes: new values of fields of the method's ``Config``.

    Returns:
        The network, initialised from torch's global random state.

    Example:
        >>> model = build("siamese_lesion", variant="siamese")
        >>> sum(p.numel() for p in model.parameters())
        9092706
    """
    if name not in MODELS:
        raise ValueError(
            f"build: name must be one of {', '.join(MODELS)}; got {name!r}"
            f"{did_you_mean(name, MODELS)}"
        )
    config = _load(name, "Config")
    require_fields(name, changes, config)
    return MODELS[name](config(**changes))


def _load(name: str, attribute: str) -> Any:
    return getattr(import_module(f"{__name__}.{name}"), attribute)
