"""Peers of the studies: the same patients and units as the arms, and their rows."""

import functools
import importlib
import json
import sys

import pytest
import torch

from cmrfast import methods
from cmrfast.data import open_dataset, split_by_patient
from cmrfast.data.datasets import read_nnunet
from cmrfast.data.phantom import write_phantoms
from cmrfast.methods import Row
from cmrfast.methods.adversarial_transfer.protocols import lending_split
from cmrfast.ops import affine_sample
from cmrfast.runs.evaluate import Evaluation
from studies import nnunet, page, peers, rules
from studies.peer import Peer

STUDIES = {
    name: importlib.import_module(f"studies.{name}").STUDIES[0]
    for name in ("joint_scar", "new_lesions", "adversarial_transfer")
}
PERFECT = {"joint_scar": ("scar_dice", 1), "new_lesions": ("dice", 1)}
PERFECT["adversarial_transfer"] = ("dice_percent", 100)


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    """Four phantoms of a study, written once."""

    @functools.cache
    def make(name):
        layout = methods.get(name).datasets[0]
        folder = tmp_path_factory.mktemp(layout)
        return open_dataset(layout, write_phantoms(layout, folder, cases=4, shrink=4))

    return make


@pytest.fixture
def perfect_nnunet(monkeypatch):
    """Instead of nnU-Net, a program that knows the labels."""
    monkeypatch.setattr(nnunet, "version", lambda package: "2.8")
    monkeypatch.setattr(
        nnunet,
        "_train_and_predict",
        lambda out, dataset, minutes: (out / "raw" / dataset / "labelsTs", "nothing trained"),
    )


def peer_of(values, name="nnU-Net", note="a note"):
    rows = [Row({"case": case, "slice": 0}, {"scar_dice": value}) for case, value in values.items()]
    return Peer(name, "2.8", 90.0, Evaluation("joint_scar", "test", rows, {}), note)


@pytest.mark.parametrize("name", nnunet.PROBLEMS)
def test_given_labels_are_scored_as_an_arms(name, tmp_path, patients, perfect_nnunet):
    cohort, study = patients(name), STUDIES[name]
    peer = nnunet.run_nnunet(name, cohort[:3], cohort[3:], minutes=1, out=tmp_path)
    row = peer.as_json(study)
    score, perfect = PERFECT[name]
    assert row["scores"][score] == perfect
    assert set(row["scores"]) <= set(study.scores)
    assert row["measurements"][score] == {cohort.names[3]: [perfect]}
    assert (row["patients"], row["version"]) == (1, "2.8")
    assert "nothing trained; one seed, CPU" in row["note"]


def test_scar_and_its_wall_are_one_label_image(tmp_path, patients, perfect_nnunet):
    cohort = patients("joint_scar")
    peer = nnunet.run_nnunet("joint_scar", cohort[:3], cohort[3:], minutes=1, out=tmp_path)
    assert peer.as_json(STUDIES["joint_scar"])["scores"]["myocardium_dice"] == 1
    found = read_nnunet(tmp_path / "raw/Dataset001_joint_scar")
    assert found[0].labelling["LGE"].classes == {"myocardium": (1,), "scar": (2,)}


def test_all_masks_of_the_split_train_it(tmp_path, patients, perfect_nnunet):
    cohort = patients("adversarial_transfer")
    names = cohort.names
    split = lending_split(names[:1], names[1:3], test=names[3:])
    train, test = cohort.subset(split.train), cohort.subset(split.test)
    nnunet.run_nnunet("adversarial_transfer", train, test, minutes=1, out=tmp_path)
    found = read_nnunet(tmp_path / "raw/Dataset001_adversarial_transfer")
    training = [case.name for case in found if case.info["set"] == "training"]
    sequences = [name.rpartition("_")[2] for name in training]
    assert sequences.count("C0") == sequences.count("T2") == 3
    assert sequences.count("LGE") == 1
    assert [case.name for case in found if case.info["set"] == "test"] == ["patient4_LGE"]


@pytest.mark.slow
def test_nnunet_itself(tmp_path, patients):
    pytest.importorskip("nnunetv2")
    cohort = patients("joint_scar")
    peer = nnunet.run_nnunet("joint_scar", cohort[:3], cohort[3:], minutes=0.1, out=tmp_path)
    row = peer.as_json(STUDIES["joint_scar"])
    assert 0 <= row["scores"]["myocardium_dice"] <= 1
    assert row["seconds"] > 6


def test_a_known_motion_is_found_by_both_registrations():
    pytest.importorskip("SimpleITK")
    texture = torch.rand(1, 1, 10, 13, generator=torch.Generator().manual_seed(0))
    texture = torch.nn.functional.interpolate(texture, (60, 80), mode="bicubic")
    y, x = torch.meshgrid(torch.arange(60.0), torch.arange(80.0), indexing="ij")
    distance = (y - 28) ** 2 / 300 + (x - 40) ** 2 / 500
    moved = torch.tensor([[[1, 0, 4 / 40], [0, 1, 3 / 30]]])  # lge(theta p) is cine(p)
    for width, affine in ((0.15, False), (1, True)):
        image = texture * (-distance / width).exp()
        network = rules._Registration(affine=affine).eval()
        theta = network(image, image.roll((3, 4), (2, 3)))["theta"]
        torch.testing.assert_close(theta, moved, atol=0.005, rtol=0)
    linear = torch.tensor([[0.95, 0.1], [-0.1, 1.05]])
    theta = torch.cat((linear, torch.tensor([[0.1], [-0.05]])), 1)[None]
    network = rules._Registration(affine=True).eval()
    found = network(affine_sample(image, theta), image)["theta"]
    torch.testing.assert_close(found, theta, atol=0.005, rtol=0)


def test_registrations_are_scored_as_networks(patients):
    pytest.importorskip("SimpleITK")
    cohort = patients("joint_registration")
    study = importlib.import_module("studies.joint_registration").STUDIES[0]
    small = {"side": 64, "spacing_mm": 2.6}
    first, second = (peer.as_json(study) for peer in rules.registrations(cohort[3:], **small))
    assert (first["name"], second["name"]) == (
        "SimpleITK, centres of mass",
        "SimpleITK, affine, mutual information",
    )
    for row in (first, second):
        assert set(row["scores"]) == set(study.scores) - {"cine_dice_percent", "lge_dice_percent"}
        assert row["scores"]["lv_cd_mm"] > 0
        assert row["measurements"]["lv_cd_mm"].keys() == {cohort.names[3]}


def test_the_six_sd_rule_marks_bright_muscle(patients):
    cohort = patients("joint_scar")
    peer = rules.six_deviations(cohort)
    scores = peer.as_json(STUDIES["joint_scar"])["scores"]
    assert set(scores) == {"scar_dice", "scar_precision", "scar_recall"}
    assert all(0 < value < 1 for value in scores.values())
    wall = torch.zeros(20, 20, dtype=torch.bool)
    wall[5, 5] = True  # too small for a sector of healthy muscle
    assert not rules._bright(torch.rand(20, 20), wall, (1.0, 1.0)).any()


@pytest.mark.slow
def test_the_threshold_of_the_difference_is_the_best_of_training_patients(patients, monkeypatch):
    monkeypatch.setattr(rules, "_THRESHOLDS", (3.0, 100.0))
    cohort = patients("new_lesions")
    peer = rules.difference_threshold(cohort[:2], cohort[3:])
    row = peer.as_json(STUDIES["new_lesions"])
    assert row["patients"] == 1
    assert "above 3, the best on the training patients" in row["note"]


def test_borrowed_masks_cover_the_lge_stack(patients):
    cohort = patients("adversarial_transfer")
    first, second = rules.borrowed(cohort[3:])
    assert (first.name, second.name) == ("masks borrowed from C0", "masks borrowed from T2")
    for peer in (first, second):
        scores = peer.as_json(STUDIES["adversarial_transfer"])["scores"]
        assert 5 < scores["dice_percent"] < 100


def test_what_nnunet_says_when_it_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(nnunet, "_PREPARE", ("os", "no_such_command"))
    with pytest.raises(RuntimeError, match=r"nnU-Net failed: ImportError: .*log.txt\)"):
        nnunet._train_and_predict(tmp_path, "Dataset001_x", 1)


def test_a_peer_is_added_to_the_result_of_the_same_patients(tmp_path):
    study = STUDIES["joint_scar"]
    file = tmp_path / "joint_scar-small.json"
    measured = {"jdl": {"scar_dice": {"p1": [0.5], "p2": [None]}}}
    content = {"scores": list(study.scores), "measurements": measured, "peers": []}
    file.write_text(json.dumps(content))
    for value in (0.25, 0.75):
        peer = peer_of({"p1": value, "p2": float("nan")})
        text = peers.add(tmp_path, study, "small", peer, ["p1", "p2"])
    peers.add(tmp_path, study, "small", peer_of({"p1": 0.5, "p2": 0.5}, "other"), ["p1", "p2"])
    first, second = json.loads(file.read_text())["peers"]
    assert (first["name"], second["name"]) == ("nnU-Net", "other")
    assert first["scores"] == {"scar_dice": 0.75}
    assert first["measurements"] == {"scar_dice": {"p1": [0.75], "p2": [None]}}
    assert text.splitlines() == [
        "| other programs | version | scar dice | test patients | minutes | how |",
        "| --- | --- | ---: | ---: | ---: | --- |",
        "| nnU-Net | 2.8 | 0.750 | 2 | 1.5 | a note |",
    ]
    with pytest.raises(SystemExit, match="is of other test patients; run the study again"):
        peers.add(tmp_path, study, "small", peer, ["p1", "p3"])


def test_the_study_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["peers", "joint_scar", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"run python -m studies.joint_scar first"):
        peers.main()


def test_the_command_adds_a_row_to_the_result_file(
    patients, tmp_path, monkeypatch, capsys, perfect_nnunet
):
    cohort, study = patients("joint_scar"), STUDIES["joint_scar"]
    recipe = methods.get("joint_scar").configure(study.small.changes)[1]
    test = split_by_patient(cohort.names, recipe.split, seed=0).test
    measured = {"jdl": {"scar_dice": {name: [0.5] for name in test}}}
    file = tmp_path / "joint_scar-small.json"
    content = {"scores": list(study.scores), "measurements": measured, "peers": []}
    file.write_text(json.dumps(content))
    words = ["--data", str(cohort.root), "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["peers", "joint_scar", *words])
    peers.main()
    (row,) = json.loads(file.read_text())["peers"]
    assert (row["name"], set(row["measurements"]["scar_dice"])) == ("nnU-Net", set(test))
    assert capsys.readouterr().out.strip() == page.peers(json.loads(file.read_text()))


def test_a_result_without_peers_has_no_table():
    assert page.peers({}) == page.peers({"peers": []}) == ""
