"""``data describe``, and data of one's own as options of the other commands."""

import pytest

from cmrfast.data.phantom import write_phantoms
from tests.support import training_task


@pytest.fixture
def patients(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_phantoms("emidec", tmp_path / "p", cases=3, shrink=4)


def test_a_folder_is_described_and_a_table_written(run, patients):
    code, out, errors = run("data", "describe", "p", "--write", "cases.csv")
    assert (code, errors) == (0, "")
    assert out.startswith("p: emidec, 3 cases\nsequences: LGE (3)\nlabels: LGE (3)\n")
    assert out.endswith("cases.csv: 3 cases; --data cases.csv reads it\n")
    code, out, _ = run("data", "describe", "cases.csv")
    assert "values have no names" in out
    assert "joint_scar            can train: no, missing LGE label (myocardium, scar)" in out
    code, out, _ = run("data", "describe", "cases.csv", "--labels", "myocardium=2 scar=3,4")
    assert "joint_scar            can train: yes, 3 cases" in out
    code, _, errors = run("data", "describe", "p", "--write", "cases.csv")
    assert (code, "cases.csv exists" in errors) == (2, True)
    code, _, errors = run("data", "describe", "p", "--labels", "scra=3")
    assert code == 2
    assert "labels: structures are myocardium, lesion, " in " ".join(errors.split())
    code, _, errors = run("data", "describe", "gone")
    assert (code, errors.count("\n")) == (1, 1)


def test_what_is_wrong_with_a_layout_of_one_s_own_is_said(run, patients, tmp_path):
    (tmp_path / "p" / "cases.csv").write_text("case,LGE\np,a.nii\np,b.nii\n")
    code, _, errors = run("data", "describe", "p")
    assert code == 1
    assert errors.endswith("must name a case that no other row names; got 'p'\n")


@pytest.mark.parametrize("text", ["scar", "scar=", "scar=a", "=1", "scar=1,,2", "scar=-1"])
def test_labels_are_structures_and_values(run, patients, text):
    words = ["train", "joint_scar", "--data", "p", "--out", "r", "--labels", text]
    code, _, errors = run(*words)
    assert code == 2
    assert f"--labels must be STRUCTURE=VALUE,VALUE; got {text}" in " ".join(errors.split())


def test_labels_of_another_method(run, patients):
    words = ["train", "joint_scar", "--data", "p", "--out", "r", "--labels", "brain=1"]
    code, _, errors = run(*words)
    assert code == 1
    assert errors.endswith("\ncmrfast: labels: structures are myocardium, scar; got brain\n")


def test_files_of_a_case(run, tmp_path, monkeypatch):
    training_task.install(monkeypatch.setattr)
    monkeypatch.chdir(tmp_path)
    small = [
        f"--{n}={','.join(map(str, v)) if isinstance(v, tuple) else v}"
        for n, v in training_task.SMALL.items()
    ]
    words = ["--data", "x", "--out", "r", "--steps", "1", "--device", "cpu"]
    assert run("train", "siamese_lesion", *words, *small)[0] == 0
    files = ["--t1", "a.nii", "--T1-Myocardium=m.nii"]
    code, out, _ = run("predict", "r", *files, "--out", "o", "--device", "cpu")
    assert (code, out) == (0, "a: \n1 predicted, 0 there already, 0 failed\n")
    assert (tmp_path / "o" / "predictions.csv").read_text() == "case,class\na,1\n"
    for given, code, message in (
        ([], 2, "INPUT, or the files of a case, must be given"),
        (["--t1"], 2, "--t1 must be followed by a file"),
        (["--t1", "--lge", "b.nii"], 2, "--t1 must be followed by a file"),
        (["--t1", "a.nii"], 2, "missing: t1_myocardium label (myocardium)"),
        (["--t3", "a.nii"], 2, "siamese_lesion: files are t1, t1_myocardium; got t3"),
        (["a.nii", "--frame", "0"], 2, "--frame must be at least 1; got 0"),
        (["a.nii", "--like", "dicom"], 2, "'dicom' is not one of 'folders', 'nnunet', 'bids'"),
        (["a.nii", "--device", "gpu"], 2, "device: must be auto, cpu, cuda or cuda:N; got 'gpu'"),
    ):
        found, _, errors = run("predict", "r", *given, "--out", "q")
        assert found == code, errors
        assert message in " ".join(errors.replace("│", " ").split())
