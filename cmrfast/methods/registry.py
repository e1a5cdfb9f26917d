"""Methods by name; a method's modules are imported when it is asked for."""

from importlib import import_module

from cmrfast.errors import did_you_mean
from cmrfast.methods.method import AnyMethod
from cmrfast.models import MODELS


def get(name: str) -> AnyMethod:
    """The record of a method.

    Args:
        name: a key of ``cmrfast.models.MODELS``.
    """
    if name not in MODELS:
        raise ValueError(
            f"methods.get: name must be one of {', '.join(MODELS)}; got {name!r}"
            f"{did_you_mean(name, MODELS)}"
        )
    method: AnyMethod = import_module(f"cmrfast.methods.{name}").METHOD
    return method
