"""The networks that come with the package: small, whole, and better than chance on new phantoms."""

import pytest

from cmrfast.data.phantom import write_phantoms
from cmrfast.errors import FileError
from cmrfast.methods import get
from cmrfast.runs import demo_weights, evaluate, predict
from cmrfast.runs.weights import FOLDER, WITH_WEIGHTS

#: Method → enlargement of voxels, score, and what it must exceed.
TRIED = {
    "adversarial_transfer": (3, "dice_percent", 60),
    "joint_registration": (2.5, "lge_dice_percent", 50),
    "joint_scar": (2, "myocardium_dice", 0.5),
    "new_lesions": (2, "dice", 0.3),
}


def test_all_of_them_are_small_and_have_cards():
    assert {path.name for path in FOLDER.iterdir() if path.is_dir()} == set(WITH_WEIGHTS)
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 5e6
    for method in WITH_WEIGHTS:
        card = (FOLDER / method / "card.md").read_text("utf-8")
        assert "Trained on synthetic patients only" in card
        assert "/tmp" not in (FOLDER / method / "run.json").read_text("utf-8")


@pytest.mark.parametrize("method", WITH_WEIGHTS)
def test_the_copy_is_a_run_that_predicts(method, tmp_path):
    write_phantoms(get(method).datasets[0], tmp_path / "data", cases=1, seed=7, shrink=4)
    run = demo_weights(method, tmp_path / "run")
    outcome = predict(run, [tmp_path / "data"], tmp_path / "out")
    assert outcome.done
    assert not outcome.failed


@pytest.mark.slow
@pytest.mark.parametrize("method", TRIED)
def test_it_learned_something(method, tmp_path):
    shrink, score, least = TRIED[method]
    write_phantoms(get(method).datasets[0], tmp_path / "data", cases=4, seed=8, shrink=shrink)
    evaluation = evaluate(demo_weights(method, tmp_path / "run"), tmp_path / "data", part="all")
    assert evaluation.summary()[score].mean > least


def test_an_existing_folder_is_kept(tmp_path):
    with pytest.raises(FileError, match=r"demo_weights: .* exists; name a new folder"):
        demo_weights("joint_scar", tmp_path)


def test_an_unknown_method_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"demo_weights: method must be one of .*did you mean"):
        demo_weights("joint_scars", tmp_path / "run")
    with pytest.raises(ValueError, match="there are no demonstration weights for siamese_lesion;"):
        demo_weights("siamese_lesion", tmp_path / "run")
