"""Without the program that a drop-in is for, its import says what to install."""

import sys
from importlib import import_module

import pytest


@pytest.mark.parametrize(("extra", "name"), [("monai", "MONAI"), ("lightning", "Lightning")])
def test_the_extra_is_named(extra, name, monkeypatch):
    for module in [m for m in sys.modules if m.startswith(f"cmrfast.compat.{extra}")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, extra, None)
    message = (
        rf"compat\.{extra}: {name} is needed; install it with pip install 'cmrfast\[{extra}\]'"
    )
    with pytest.raises(ImportError, match=message):
        import_module(f"cmrfast.compat.{extra}")
