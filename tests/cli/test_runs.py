"""The commands about runs: what they print, how they fail, their exit codes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import cmrfast.train
from cmrfast import FileError
from cmrfast.cli.options import Like, Track
from cmrfast.data.datasets import Part, Split
from cmrfast.runs.outputs import LIKE
from cmrfast.train import Run
from cmrfast.train.trackers import TRACKERS
from tests.support import training_task

SMALL = [
    word
    for name, value in training_task.SMALL.items()
    for word in (
        f"--{name}",
        ",".join(map(str, value)) if isinstance(value, tuple) else str(value),
    )
]


@pytest.fixture(autouse=True)
def made_up_patients(monkeypatch, tmp_path):
    training_task.install(monkeypatch.setattr)
    monkeypatch.chdir(tmp_path)


def train(run, *arguments):
    return run("train", "siamese_lesion", "--data", "nowhere", "--device", "cpu", *arguments)


def test_from_training_to_a_report(run, tmp_path):
    code, out, errors = train(run, "--out", "r", "--steps", 3, "--set", "lr=1e-3", *SMALL)
    assert (code, out) == (0, "")
    assert "4 patients to train, 1 to validate, 1 to test; 20 samples, 3 steps of 8" in errors
    assert "step 3/3  loss " in errors
    opened = Run.open("r")
    assert (opened.recipe.lr, opened.config.channels) == (1e-3, (4, 4, 4, 4))
    code, out, _ = run("evaluate", "r")
    assert code == 0
    title, _, heads, scores, *notes = out.splitlines()
    assert title == "siamese_lesion, test: 1 patient; mean (SD)"
    assert heads.split() == ["this", "run", "n", "empty"]
    assert scores.split()[0] == "accuracy"
    assert scores.split()[2:] == ["1", "-"]
    assert [note.partition(":")[0] for note in notes] == ["note", "note"]
    code, out, _ = run("evaluate", "r", "--split", "all", "--json")
    assert len(json.loads(out)["rows"]) == 6
    assert (tmp_path / "r" / "evaluation-all.csv").exists()
    code, out, _ = run("report", "r")
    assert (code, out) == (0, "r/report.html\n")
    assert train(run, "--out", "r", "--steps", 4, "--resume", "--set", "lr=1e-3", *SMALL)[0] == 0
    assert Run.open("r").checkpoint().step == 4


def test_a_bad_patient_does_not_stop_the_others(run, tmp_path, monkeypatch):
    train(run, "--out", "r", "--steps", 1, *SMALL)
    score = training_task.RandomTask.evaluate

    def fail(self, model, case):
        if case.name == "subject3":
            raise FileError("image: x.nii.gz is cut off")
        return score(self, model, case)

    monkeypatch.setattr(training_task.RandomTask, "evaluate", fail)
    for command in ("evaluate", "report"):
        code, out, errors = run(command, "r", "--split", "all")
        assert (code, errors.splitlines()[-1]) == (
            1,
            "failed: subject3: image: x.nii.gz is cut off",
        )
        assert "5 patients" in out or out == "r/report.html\n"
    assert "subject3: image: x.nii.gz is cut off." in (tmp_path / "r/report.html").read_text()
    assert len((tmp_path / "r/evaluation-all.csv").read_text().splitlines()) == 6


def test_a_patient_is_shown(run, tmp_path, monkeypatch):
    train(run, "--out", "r", "--steps", 1, *SMALL)
    assert run("view", "r", "subject2")[:2] == (0, "r/view-subject2.html\n")
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda uri: opened.append(uri) or len(opened) == 1)
    code, out, errors = run("view", "r", "subject2", "--out", "a.html", "--open")
    assert (code, out) == (0, "a.html\n")
    assert opened == [(tmp_path / "a.html").as_uri()]
    code, out, errors = run("view", "r", "subject2", "--out", "a.html", "--open")
    assert (code, out) == (0, "a.html\n")
    assert errors.splitlines()[-1] == "no browser was found; open a.html in one"
    code, _, errors = run("view", "r", "subject")
    assert code == 1
    assert errors.splitlines()[1].startswith("cmrfast: view: ")
    assert "has no patient subject; did you mean subject" in errors
    for words in (["r"], ["r", "a", "b"], ["r", "subject2", "--frame", "1"]):
        code, _, errors = run("view", *words)
        assert code == 2
        assert "a RUN takes the name of one CASE, and no --frame" in errors


def test_an_image_is_shown(run, image):
    code, out, _ = run("view", image)
    assert (code, out) == (0, f"{image.name.partition('.')[0]}.html\n")
    code, _, errors = run("view", image, "--max-mb", "0.00001")
    assert (code, errors.count("\n")) == (1, 2)
    assert "more than 1e-05; a larger limit (--max-mb) or" in errors


def test_a_run_resumes_with_its_own_options(run):
    options = ["--steps", 2, "--seed", 3, "--precision", "bfloat16", "--micro-batch", 4]
    train(run, "--out", "r", *options, "--lr", "1e-3", *SMALL)
    begun = Run.open("r").plan
    code, _, errors = run("train", "siamese_lesion", "--out", "r", "--resume", "--steps", 3)
    assert code == 0, errors
    assert Run.open("r").plan == replace(begun, steps=3)
    assert (begun.seed, begun.precision, begun.recipe["lr"]) == (3, "bfloat16", 1e-3)
    code, _, errors = run("train", "siamese_lesion", "--out", "r", "--resume", "--seed", 4)
    assert code == 1
    assert "was written for seed=3, this model is seed=4" in errors
    code, _, errors = run("train", "joint_scar", "--out", "r", "--resume")
    assert (code, errors.splitlines()[1]) == (
        1,
        "cmrfast: train: r is a run of siamese_lesion; it cannot resume as joint_scar",
    )
    code, _, errors = run("train", "siamese_lesion", "--out", "s", "--resume")
    assert (code, errors.splitlines()[1]) == (
        1,
        "cmrfast: train: data is needed, the root of a data set; s holds no run",
    )


def test_a_run_may_start_from_another(run):
    train(run, "--out", "r", "--steps", 1, *SMALL)
    code, _, errors = train(run, "--out", "tuned", "--init", "r", "--steps", 1, *SMALL)
    assert code == 0
    assert f"; weights of {Path('r').resolve()}" in errors
    code, _, errors = run("train", "siamese_lesion", "--out", "tuned", "--resume", "--steps", 2)
    assert code == 0, errors
    code, _, errors = train(run, "--out", "other", "--init", "r", *SMALL, "--hidden", 9)
    assert (code, errors.count("\n")) == (1, 2)
    assert "cmrfast: train: the weights of r do not fit the network; of another shape" in errors


def test_patients_may_be_named(run, tmp_path):
    train(run, "--out", "dealt", "--steps", 1, *SMALL)
    dealt = Run.open("dealt").plan.split
    own = Split(dealt.test, dealt.train, dealt.validate)
    own.save(tmp_path / "patients.json")
    code, _, errors = train(run, "--out", "r", "--patients", "patients.json", "--steps", 1, *SMALL)
    assert (code, errors.count("1 patients to train, 4 to validate")) == (0, 1)
    assert Run.open("r").plan.split == own


def test_sequences_of_patients_may_be_named(run, tmp_path):
    split = Split(Part({"subject1": ("T1",)}), ("subject2",), ())
    split.save(tmp_path / "patients.json")
    code, _, errors = train(run, "--out", "r", "--patients", "patients.json", *SMALL)
    assert (code, errors.splitlines()[1:]) == (
        1,
        ["cmrfast: image: subject1 has no T1 image; it has none"],
    )
    (tmp_path / "patients.json").write_text('{"train": {"subject1": "T1"}}')
    code, _, errors = train(run, "--out", "r", "--patients", "patients.json", *SMALL)
    assert (code, errors.count("\n")) == (1, 2)
    assert "cmrfast: load: patients.json must map train, validate and test to" in errors


def test_a_range_replaces_the_value_of_a_named_recipe(run, monkeypatch):
    asked = []

    def search(method, data, out, **options):
        asked.append((options["changes"], options["ranges"]))
        return {"trials": 1, "score": 0.5, "best": {}}

    monkeypatch.setattr("cmrfast.train.search.search", search)
    words = ["search", "adversarial_transfer", "--data", "d", "--out", "o", "--recipe", "code"]
    for more in ([], ["--range", "individual_weight=0:1"]):
        assert run(*words, *more, "--lr", "0.1")[0] == 0
    (fixed, none), (searched, ranges) = asked
    assert none is None
    assert fixed == {**searched, "individual_weight": 0.5}
    assert {*ranges} == {"individual_weight"}
    assert searched["lr"] == 0.1


def test_a_search_may_name_its_patients_too(run, monkeypatch):
    asked = {}

    def search(method, data, out, **options):
        asked.update(options)
        return {"trials": 1, "score": 0.5, "best": {"lr": 1e-3}}

    monkeypatch.setattr("cmrfast.train.search.search", search)
    split = Split(("a",), ("b",), ("c",))
    split.save(Path("patients.json"))
    words = ["search", "siamese_lesion", "--data", "d", "--out", "o", "--patients", "patients.json"]
    assert run(*words)[:2] == (0, "best of 1: score 0.5\n  --set lr=0.001\n")
    assert asked["split"] == split
    assert run(*words, "--init", "r")[0] == 0
    assert asked["init"] == Path("r")


def test_failures_are_one_line(run):
    train(run, "--out", "r", "--steps", 1, *SMALL)
    code, _, errors = train(run, "--out", "r", *SMALL)
    assert code == 1
    said, error = errors.splitlines()
    assert said == "siamese_lesion: training r"
    assert error == "cmrfast: train: r holds a run already; resume (--resume) continues it"
    code, _, errors = run("evaluate", "nothing")
    said, error = errors.splitlines()
    assert (code, said) == (1, "evaluating nothing")
    assert error == "cmrfast: open_run: nothing holds no run.json; is it a run?"
    code, _, errors = run("predict", "r", "gone.nii", "--out", "p")
    assert code == 1
    assert errors.count("\n") == 2
    assert "failed: gone.nii: predict: gone.nii is neither a file nor a folder" in errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "unet", "--data", "d", "--out", "o"], "METHOD must be one of siamese_lesion"),
        (["train", "siamese_lesion", "--data", "d"], "Missing option '--out'"),
        (["train", "siamese_lesion", "--out", "o"], "--data is needed"),
        (["train", "joint_scra", "--data", "d", "--out", "o"], "did you mean joint_scar?"),
        (
            ["train", "siamese_lesion", "--data", "d", "--out", "o", "--varient", "pure"],
            "--varient is neither an option nor a field of siamese_lesion; did you mean --variant? "
            "cmrfast train siamese_lesion --help lists all",
        ),
        (["train", "siamese_lesion", "--data", "d", "--out", "o", "--step", "9"], "mean --steps?"),
        (
            ["train", "siamese_lesion", "--data", "d", "--out", "o", "--lr", "abc"],
            "lr must be a number; got 'abc'",
        ),
        (
            ["train", "siamese_lesion", "--data", "d", "--out", "o", "--precision", "fp16"],
            "'fp16' is not one of 'float32', 'bfloat16', 'float16'",
        ),
        (
            ["train", "siamese_lesion", "--data", "d", "--out", "o", "--recipe", "papr"],
            "got 'papr'; did you mean paper?",
        ),
        (
            ["train", "siamese_lesion", "--data", "d", "--out", "o", "--variant"],
            "--variant must be followed by a value",
        ),
        (
            ["train", "siamese_lesion", "--data", "d", "--out", "o", "lr", "1"],
            "options come as --field value; got lr 1",
        ),
        (
            ["train", "siamese_lesion", "--data", "d", "--out", "o", "--set", "lr"],
            "--set must be FIELD=VALUE; got lr",
        ),
        (
            ["train", "siamese_lesion", "--data", "d", "--out", "o", "--track", "foo"],
            "'foo' is not one of 'tensorboard', 'mlflow', 'wandb'",
        ),
        (
            ["train", "siamese_lesion", "--data", "d", "--out", "o", "--device", "gpu"],
            "must be auto, cpu, cuda or cuda:N; got 'gpu'; did you mean cuda?",
        ),
        (["weights", "foo", "x"], "METHOD must be one of siamese_lesion"),
        (
            ["weights", "siamese_lesion", "x"],
            "there are no demonstration weights for siamese_lesion; there are for adversarial_t",
        ),
        (["train", "siamese_lesion", "--data", "d", "--out", "o", "--steps", "0"], "at least 1"),
        (
            ["train", "siamese_lesion", "--data", "d", "--out", "o", "--micro-batch", "few"],
            "auto or a whole number",
        ),
        (["train", "siamese_lesion", "--data", "d", "--out", "o", "--variant", "both"], "variant"),
        (["evaluate", "r", "--split", "half"], "--split must be"),
        *(
            (
                ["search", "joint_scar", "--data", "d", "--out", "o", "--range", f"lr={bounds}"],
                f"FIELD=LOW:HIGH or FIELD=LOW:HIGH:log; got lr={bounds}",
            )
            for bounds in ("1", "1e-5:1e-2:lgo", "1e-5:1e-2:log:x", "1e-5:1e-2:log:", "1:2:3")
        ),
    ],
)
def test_wrong_use_exits_with_2(run, words, message):
    code, _, errors = run(*words)
    assert code == 2
    assert message in " ".join(errors.replace("│", " ").split())


def test_choices_are_those_of_the_package():
    assert [*Like] == [*LIKE]
    assert [*Track] == [*TRACKERS]


@pytest.mark.parametrize("path", ["runs/lr=0.1/x.npz", "a,b.npz", "1"])
def test_a_path_as_the_value_of_a_field(run, monkeypatch, path):
    given = {}
    monkeypatch.setattr(cmrfast.train, "train", lambda *a, **options: given.update(options))
    for words in (
        ["--pretrained", path],
        [f"--pretrained={path}"],
        ["--set", f"pretrained={path}"],
    ):
        code, _, errors = run("train", "joint_scar", "--data", "d", "--out", "o", *words)
        assert code == 0, errors
        assert given["changes"] == {"pretrained": path}
    assert run("train", "joint_scar", "--data", "d", "--out", "o", "--pretrained", "none")[0] == 0
    assert given["changes"] == {"pretrained": None}
