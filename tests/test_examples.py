"""The scripts of examples/ on little data."""

import csv
import json
import runpy

import pytest

from tests.support.paths import ROOT

EXAMPLES = ROOT / "examples"


def script(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_train_your_own(tmp_path, capsys):
    main = script("train_your_own")
    score = main(["--cases", "4", "--epochs", "2", "--side", "40"])
    assert 0 <= score <= 1
    assert capsys.readouterr().out.count("validation Dice") == 2
    assert (tmp_path / "own" / "best.safetensors").exists()
    data = str(tmp_path / "own" / "data")
    again = main(["--data", data, "--out", "again", "--epochs", "2", "--side", "40"])
    assert again == score


@pytest.mark.slow
def test_train_your_own_learns():
    assert script("train_your_own")(["--out", "own"]) > 0.6


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from cmrfast.data.phantom import write_phantoms
    from cmrfast.train import train

    folder = tmp_path_factory.mktemp("run")
    small = runpy.run_path(str(EXAMPLES / "predict_folder.py"))["SMALL"]
    write_phantoms("emidec", folder / "patients", cases=3, shrink=4)
    train("joint_scar", folder / "patients", folder / "run", changes=small, steps=1)
    return folder


def test_predict_folder(run, tmp_path, capsys):
    (run / "patients" / "broken.nii.gz").write_bytes(b"no image")
    table = script("predict_folder")([str(run / "run"), str(run / "patients"), "masks"])
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 3
    assert "failed: broken: read_nifti: " in capsys.readouterr().err
    for row in rows:
        assert float(row["scar_ml"]) >= 0
        assert (tmp_path / "masks" / row["case"] / "scar.nii.gz").exists()


@pytest.mark.slow
def test_predict_folder_alone(tmp_path):
    assert script("predict_folder")([]).exists()


def test_benchmark_an_op(capsys):
    script("benchmark_an_op")(2, 24, compiled=False, seconds=0.01)
    assert capsys.readouterr().out.count(" ms ") == 2


@pytest.mark.slow
def test_benchmark_an_op_compiled(capsys):
    script("benchmark_an_op")(2, 24, seconds=0.01)
    assert capsys.readouterr().out.count(" ms ") == 4


def test_notebook_runs():
    cells = json.loads((EXAMPLES / "first_look.ipynb").read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in code), "store the notebook with its outputs"
    namespace = {}
    for cell in code:
        exec("".join(cell["source"]), namespace)
    case, mask = namespace["case"], namespace["mask"]
    assert namespace["dice"](mask.data[0] == 1, case.label("LGE").data[0] >= 2) > 0.5


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_scripts_are_short(path):
    assert len(path.read_text().splitlines()) <= 80
