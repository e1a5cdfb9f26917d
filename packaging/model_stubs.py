"""Write the stub of cmrfast.models, from which editors complete the fields that ``build`` takes.

python packaging/model_stubs.py
"""

from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from cmrfast.models import _CLASSES

STUB = Path(__file__).parents[1] / "cmrfast" / "models" / "__init__.pyi"
_HEAD = '''"""Written by packaging/model_stubs.py from the fields of each Config."""

from collections.abc import Mapping
from typing import Any, Literal, overload

from torch import nn

'''
_TAIL = """@overload
def build(name: str, **changes: Any) -> nn.Module: ...
"""


def stub() -> str:
    """The text of the stub."""
    imports = [f"from cmrfast.models.{name} import {kind}\n" for name, kind in _CLASSES.items()]
    text = _HEAD + "".join(sorted(imports)) + '\n__all__ = ["MODELS", "build"]\n\n'
    text += "_CLASSES: dict[str, str]\nMODELS: Mapping[str, type[nn.Module]]\n\n"
    for name, kind in _CLASSES.items():
        config = import_module(f"cmrfast.models.{name}").Config
        text += f'@overload\ndef build(\n    name: Literal["{name}"],\n    *,\n'
        for field in fields(config):
            text += f"    {field.name}: {_spell(field.type)} = ...,\n"
        text += f") -> {kind}: ...\n"
    return text + _TAIL


def _spell(kind: Any) -> str:
    """A field's type as source text."""
    if get_origin(kind) is Literal:
        return "Literal[" + ", ".join(f'"{option}"' for option in get_args(kind)) + "]"
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


if __name__ == "__main__":
    STUB.write_text(stub(), "utf-8")
