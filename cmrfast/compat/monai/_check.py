"""The message for an argument of MONAI's that is not kept."""

from typing import NoReturn


def refuse(name: str, argument: str, kept: str, given: object) -> NoReturn:
    """Raise for an argument whose value has no equal here.

    Args:
        name: of the class.
        argument: its argument.
        kept: what it may be.
        given: what it was.
    """
    raise ValueError(
        f"compat.monai.{name}: {argument} must be {kept}; got {given!r}: use MONAI's {name}"
    )
