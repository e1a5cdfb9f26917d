"""Functions with many arguments are missing a type; modules are not passed around as objects."""

import ast
from pathlib import Path

import pytest

from tests.support.paths import ROOT

MOST = 7  # arguments of a function in train/ and runs/, self and keyword options included


def long_signatures(source: str) -> list[str]:
    """Functions of a source with more than MOST arguments."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            a = node.args
            count = len([*a.posonlyargs, *a.args, *a.kwonlyargs])
            count += (a.vararg is not None) + (a.kwarg is not None)
            if count > MOST:
                found.append(f"line {node.lineno}: {node.name} takes {count} arguments")
    return found


def untyped_modules(source: str) -> list[str]:
    """Uses of ``hasattr`` and of ``ModuleType`` in a source."""
    return [
        f"line {node.lineno}: {node.id}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Name) and node.id in ("hasattr", "ModuleType")
    ]


@pytest.mark.parametrize("folder", ["train", "runs"])
def test_no_function_takes_more_arguments_than_a_reader_can_hold(folder):
    faults = {
        str(path.relative_to(ROOT)): lines
        for path in sorted((ROOT / "cmrfast" / folder).rglob("*.py"))
        if (lines := long_signatures(path.read_text()))
    }
    assert not faults


def test_modules_are_not_objects():
    faults = {
        str(path.relative_to(ROOT)): lines
        for path in sorted(Path(ROOT / "cmrfast").rglob("*.py"))
        if (lines := untyped_modules(path.read_text()))
    }
    assert not faults


def test_a_planted_fault_is_found():
    assert long_signatures("def f(a, b, c, /, d, *, e, g, **h): ...") == []
    assert long_signatures("def f(a, b, c, /, d, *e, g, h, **i): ...") == [
        "line 1: f takes 8 arguments"
    ]
    assert untyped_modules("if hasattr(module, 'step'): ...") == ["line 1: hasattr"]
