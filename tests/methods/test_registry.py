"""The record of every method: complete, consistent, and found by name alone."""

import math
import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch

from cmrfast import methods
from cmrfast.data.datasets import LAYOUTS
from cmrfast.methods import Objective, Row
from cmrfast.methods.task import PRESENCES
from cmrfast.models import MODELS
from tests.support.paths import ROOT

every_method = pytest.mark.parametrize(
    "method", [pytest.param(methods.get(name), id=name) for name in MODELS]
)


def test_reading_the_names_imports_no_torch():
    code = (
        "import sys; from cmrfast.models import MODELS; "
        "assert len(MODELS) == len(list(MODELS)); assert 'joint_scar' in MODELS; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"^methods\.get: name must be one of .*; got 'unet'$"):
        methods.get("unet")


@every_method
def test_the_record_is_complete(method):
    assert methods.get(method.name) is method
    assert method.model is MODELS[method.name]
    config, recipe = method.configure({})
    with torch.device("meta"):
        assert method.model(config).config == config
    assert set(method.search) <= {f.name for side in (config, recipe) for f in fields(side)}
    assert all(r.low < r.high for r in method.search.values())
    assert set(method.datasets) <= set(LAYOUTS)
    assert method.task(config, recipe).preparations
    assert (ROOT / f"tests/methods/{method.name}").is_dir()
    assert all(row.protocol and row.cells for row in method.published.values())


@every_method
def test_fields_are_changed_by_name_alone(method):
    config, recipe = method.configure({"lr": 0.5})
    assert (config, recipe.lr) == (method.config(), 0.5)
    with pytest.raises(ValueError, match=rf"^{method.name}: fields are .*lr.*; got 'speed'$"):
        method.configure({"speed": 1})


def test_an_objective_averages_what_has_a_value():
    rows = [Row({"case": "a"}, {"dice": 0.25}), Row({"case": "b"}, {"dice": float("nan")})]
    rows += [Row({"case": "c"}, {"dice": 0.75}), Row({"case": "d"}, {})]
    assert Objective("dice", maximise=True).mean(rows) == 0.5
    assert Objective("dice", maximise=True).merit(0.5) == 0.5
    assert Objective("loss", maximise=False).merit(0.5) == -0.5
    missing = Objective("loss", maximise=False).mean(rows)
    assert missing != missing


def test_drawing_nothing_earns_nothing():
    """Units without the structure do not count unless it is drawn there, as in tables."""
    dice = {"both": 0.5, "reference": 0.0, "prediction": 0.0, "neither": 1.0}
    rows = [Row({"case": which}, {"dice": dice[which]}, {"scar": which}) for which in PRESENCES]
    objective = Objective("dice", maximise=True, structure="scar")
    assert objective.mean(rows) == pytest.approx(0.5 / 3)
    nothing = [row for row in rows if row.present["scar"] in ("reference", "neither")]
    assert objective.mean(nothing) == 0
    assert math.isnan(objective.mean(rows[-1:]))


@every_method
def test_an_objective_knows_its_structure(method):
    objective = method.objective
    assert objective.structure == method.overlaps.get(objective.name, "")
    structures = {*method.overlaps.values(), "lesion"}
    rows = [Row({"case": "a"}, {objective.name: 1.0}, dict.fromkeys(structures, "neither"))]
    assert math.isnan(objective.mean(rows)) == (objective.name in method.overlaps)
    other = replace(method, overlaps={objective.name: "aorta"})
    assert other.objective == replace(objective, structure="aorta")
    assert replace(other, overlaps={}).objective.structure == ""
