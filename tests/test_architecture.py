"""Imports point down from layer to layer, and the picture in the docs shows them as they are."""

import importlib.util
from itertools import pairwise

import pytest

from tests.support.paths import ROOT

SCRIPT = ROOT / "docs" / "make_architecture.py"


@pytest.fixture(scope="module")
def architecture():
    spec = importlib.util.spec_from_file_location("make_architecture", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def imports(architecture):
    return architecture.find_imports(ROOT / "cmrfast")


def test_imports_point_down_and_no_two_modules_import_each_other(architecture, imports):
    assert len(imports) > 100
    assert not architecture.find_faults(imports)


def test_the_picture_is_up_to_date(architecture, imports):
    assert architecture.PICTURE.read_text("utf-8") == architecture.draw(imports), (
        "run python docs/make_architecture.py"
    )


def test_the_picture_has_every_package_and_arrow(architecture, imports):
    text = architecture.draw(imports)
    folders = {path.name for path in (ROOT / "cmrfast").iterdir() if path.name[0] not in "_."}
    packages = {
        name.removesuffix(".py") for name in folders if "." not in name or name[-3:] == ".py"
    }
    for name in packages:
        assert f">{name}</text>" in text
    drawn = [b for _, b in architecture.find_arrows(imports) if b not in architecture.FOUNDATION]
    assert text.count(" l9 -4.5 v9 z") == len(drawn)


PLANTED = {
    "from cmrfast.methods import get": "methods is above data",
    "import cmrfast.train.trainer": "train is above data",
    "def later():\n    from cmrfast.runs import predict": "runs is above data",
    "if TYPE_CHECKING:\n    from cmrfast.cli.app import app": "cli is above data",
    "from .. import infer": "infer is above data",
    "from ..infer import sliding_window": "infer is above data",
    "import_module('cmrfast.infer')": "infer is above data",
    "from cmrfast.data.other import that": "cmrfast.data.one imports cmrfast.data.other imports",
    "if TYPE_CHECKING:\n    from .other import that": "imports cmrfast.data.other imports",
    "from cmrfast.extra import that": "extra has no layer",
}


@pytest.mark.parametrize("text", PLANTED)
def test_a_planted_import_is_found(architecture, tmp_path, text):
    package = tmp_path / "cmrfast"
    for name in ("cli/app", "train/trainer", "runs/predict", "methods/one", "data/one", "extra"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / f"{name}.py").touch()
    for folder in (package, *(path for path in package.iterdir() if path.is_dir())):
        (folder / "__init__.py").touch()
    (package / "infer.py").touch()
    (package / "data" / "other.py").write_text("def f():\n    from cmrfast.data.one import this\n")
    assert not architecture.find_faults(architecture.find_imports(package))

    (package / "data" / "one.py").write_text(text)
    (fault,) = architecture.find_faults(architecture.find_imports(package))
    assert PLANTED[text] in fault


def test_two_packages_of_a_layer_do_not_import_each_other(architecture):
    planted = architecture.Import("cmrfast.losses", 3, "cmrfast.metrics.overlap")
    assert architecture.find_faults([planted]) == [
        "cmrfast.losses, line 3, imports cmrfast.metrics.overlap: metrics is in the layer of losses"
    ]


def test_longer_cycles_are_found(architecture):
    names = ["cmrfast.data.a", "cmrfast.data.b", "cmrfast.data.c", "cmrfast.data.a"]
    planted = [architecture.Import(a, 1, b) for a, b in pairwise(names)]
    assert architecture.find_faults(planted) == [" imports ".join(names)]
