"""Images with NaN or infinite voxels, in every method: refused by name, or read with zeros."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from cmrfast import methods
from cmrfast.data import write_nifti
from cmrfast.data.datasets import Case, Split
from cmrfast.errors import FileError
from cmrfast.models import MODELS
from cmrfast.train import Run
from cmrfast.train.plan import Plan, fields_as_json
from tests.support.cases import phantoms

#: Fields that make each method fast on phantoms.
SMALL: dict[str, dict[str, Any]] = {
    "siamese_lesion": {"patch": 32, "channels": (4, 4, 4, 4), "hidden": 8},
    "joint_scar": {"image": 64, "root": 32, "units": (1, 1, 1), "width": 24, "depth": 1}
    | {"heads": 3, "hidden": 40, "decoder": (8, 8, 8, 8, 4)},
    "joint_registration": {"widths": (4, 6, 8), "head_width": 4, "hidden": 8, "side": 56}
    | {"spacing_mm": 3.0},
    "new_lesions": {
        **{"spacing_mm": 4.0, "patch": 16, "overlap": 4, "per_patient": 4},
        "bias_field": False,
    },
    "adversarial_transfer": {"size": 32, "width": 4, "view_px": 32, "variant": "u"},
}
#: The values that are planted; the last is finite in the file, but not in float32.
PLANTED = (torch.nan, torch.inf, -torch.inf, 1e39)

every_method = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module", params=MODELS)
def planted(request, tmp_path_factory) -> tuple[str, Case]:
    """A method, and a patient of it whose images have such voxels."""
    method = methods.get(request.param)
    folder = tmp_path_factory.mktemp(method.name)
    case = phantoms(method.datasets[0], folder / "data", cases=1, shrink=4)[0]
    images = {}
    for sequence, path in case.images.items():
        image = case.image(sequence)
        data = image.data.double()
        data[0, 5, 5, :1] = PLANTED[0]
        data[0, 6:9, 7, 0] = torch.tensor(PLANTED[1:])
        images[sequence] = folder / f"{sequence}-{path.name}"
        write_nifti(images[sequence], image.with_data(data))
    return method.name, replace(case, images=images)


def task_of(name: str, **changes: Any) -> Any:
    """A task with small fields, and something fitted."""
    method = methods.get(name)
    config, recipe = method.configure(SMALL[name] | changes)
    fitted = {
        "new_lesions": {"landmarks": [float(p) for p in range(13)]},
        "siamese_lesion": {"t1_mean_ms": 1000.0, "t1_sd_ms": 80.0},
    }
    return method.task(config, recipe, fitted.get(name))


def model_of(name: str, task: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return methods.get(name).model(task.config).eval()


MESSAGE = r"image: .*\.nii\.gz holds 4 NaN or infinite voxels of \d+; non_finite=zero reads them as"


def test_they_are_refused_with_their_count(planted):
    name, case = planted
    task = task_of(name)
    model = model_of(name, task)
    with pytest.raises(FileError, match=MESSAGE):
        task.feed([case], seed=0)
    if name in ("new_lesions", "siamese_lesion"):  # the others fit nothing
        with pytest.raises(FileError, match=MESSAGE):
            task.fit([case])
    for call in (task.predict, task.evaluate, task.picture):
        with pytest.raises(FileError, match=MESSAGE):
            call(model, case)
    with pytest.raises(FileError, match=MESSAGE):  # before a training
        task.require_scorable(case)
    task.require_scorable(replace(case, images={}, labels={}))  # has nothing to score


def test_as_zeros_they_make_finite_batches_and_predictions(planted):
    name, case = planted
    task = task_of(name, non_finite="zero")
    model = model_of(name, task)
    task.fit([case])
    task.require_scorable(case)
    batch = task.feed([case], seed=0).batch(0, torch.arange(2))
    for key, values in batch.items():
        assert values.isfinite().all(), key
    with torch.inference_mode():
        for output in task.predict(model, case).images.values():
            assert output.volume.data.isfinite().all()
        assert task.evaluate(model, case)
        assert task.picture(model, case).image.data.isfinite().all()


@every_method
def test_every_preparation_declares_the_rule(name):
    for preparation in methods.get(name).task.preparations:
        assert "non_finite" in preparation.recipe


@every_method
def test_a_recipe_takes_no_other_rule(name):
    with pytest.raises(ValueError, match="non_finite must be one of refuse, zero; got 'ignore'"):
        methods.get(name).configure({"non_finite": "ignore"})


@every_method
def test_a_run_of_an_older_version_refuses_them(name, tmp_path):
    method = methods.get(name)
    config, recipe = method.configure({"non_finite": "zero"})
    fields = [fields_as_json(side) for side in (config, recipe)]
    split = Split(("a",), ("b",), ("c",))
    Run(tmp_path, Plan(name, *fields, 1, 0, method.datasets[0], split, 1), "data", {}).save()
    assert Run.open(tmp_path).recipe.non_finite == "zero"
    stored = json.loads((tmp_path / "run.json").read_text())
    del stored["plan"]["recipe"]["non_finite"]
    (tmp_path / "run.json").write_text(json.dumps(stored))
    assert Run.open(tmp_path).recipe.non_finite == "refuse"
