"""New lesions predicted on the later image's grid, and their scores."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import nn

from cmrfast.data import Volume, open_dataset, read_nifti, write_nifti
from cmrfast.methods import Row
from cmrfast.methods.new_lesions.brain import foreground
from cmrfast.methods.new_lesions.images import align, normalise, segment
from cmrfast.models import build
from cmrfast.models.new_lesions import Config
from tests.support.new_lesions_cases import SMALL, TASK, Oracle, pair_of


def brick(path, name, spacing, *, lesions=3, shape=(40, 36, 30)):
    """A patient whose later visit has cubes of its own; a mask of them on the same grid."""
    rng = np.random.default_rng(lesions)
    grid = np.diag([*spacing, 1.0])
    grid[:3, 3] = [7, -20, 3]
    tissue = np.zeros(shape)
    tissue[4:-4, 4:-4, 4:-4] = 300
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape), 2)
    tissue += 200 * smooth * (tissue > 0)
    mask = np.zeros(shape, bool)
    for n in range(lesions):
        mask[8 + 9 * n : 11 + 9 * n, 10 + 6 * n : 13 + 6 * n, 9 + 4 * n : 11 + 4 * n] = True
    folder = path / name
    folder.mkdir()

    def write(file, data):
        volume = Volume(torch.from_numpy(data)[None], torch.from_numpy(grid))
        write_nifti(folder / f"{file}.nii.gz", volume)

    write("flair_time01_on_middle_space", tissue.astype(np.int16))
    write("flair_time02_on_middle_space", (tissue + 2000 * mask).astype(np.int16))
    write("ground_truth", mask.astype(np.uint8))


def oracle_of(tmp_path, *, lesions, recipe=SMALL):
    brick(tmp_path, "013", (recipe.spacing_mm,) * 3, lesions=lesions)
    case = open_dataset("msseg2", tmp_path)[0]
    return TASK(Config(), replace(recipe, histogram=False)), case


@pytest.mark.parametrize("lesions", [3, 1, 0])
def test_an_oracle_is_perfect_through_the_whole_path(tmp_path, lesions):
    task, case = oracle_of(tmp_path, lesions=lesions)
    truth = case.label("consensus")
    prediction = task.predict(Oracle(), case)
    assert set(prediction.images) == {"new_lesions", "probability"}
    assert prediction.facts == {
        "lesions": lesions,
        "volume_ml": pytest.approx(lesions * 18 * 0.064),
    }
    for name, output in prediction.images.items():
        write_nifti(tmp_path / f"{name}.nii.gz", output.volume, like=output.like)
        written = read_nifti(tmp_path / f"{name}.nii.gz")
        assert written.shares_grid(case.image("later"))
        assert torch.equal(written.data > 0.6, truth.data > 0)
    (row,) = task.evaluate(Oracle(), case)
    assert row.ids == {"case": "013", "lesions": lesions, "false": 0} | (
        {"found": lesions} if lesions else {}
    )
    assert row.present == {"new_lesions": "both" if lesions else "neither"}
    by_lesion = {"f1": 1.0, "sensitivity": 1.0, "precision": 1.0}
    assert row.scores == {"dice": 1.0, "false_mm3": 0.0} | (by_lesion if lesions else {})
    picture = task.picture(Oracle(), case)
    assert torch.equal(picture.predicted.data, truth.data > 0)
    assert torch.equal(picture.reference.data, truth.data)
    assert picture.image.shares_grid(picture.predicted)
    assert torch.equal(picture.maps["new_lesion"].data > 0.5, truth.data > 0)


class Sees(nn.Module):
    """New is everything, or nothing."""

    def __init__(self, everything):
        super().__init__()
        self.logit = 50.0 if everything else -50.0

    def forward(self, earlier, later):
        return {"logits": torch.full_like(later, self.logit).expand(-1, 5, -1, -1, -1)}


def test_nothing_new_counts_what_is_found(task, cases):
    case = next(c for c in cases if not c.label("consensus").data.any())
    (silent,), (loud,) = (task.evaluate(Sees(everything), case) for everything in (False, True))
    assert silent == Row(
        {"case": case.name, "lesions": 0, "false": 0},
        {"dice": 1.0, "false_mm3": 0.0},
        {"new_lesions": "neither"},
    )
    assert loud.present == {"new_lesions": "prediction"}
    assert (loud.scores["dice"], loud.ids["lesions"], loud.ids["false"]) == (0.0, 0, 1)
    head = foreground(case.image("later").data[0]).sum() * np.prod(case.image("later").spacing_mm)
    assert loud.scores["false_mm3"] == pytest.approx(head.item(), rel=0.15)


def test_a_prediction_lies_where_the_images_do(task, cases):
    """However the scanner turned the head and the file stored it, its map is the same."""
    earlier, later = pair_of(cases[0])
    torch.manual_seed(0)
    model = build("new_lesions").eval()
    recipe = replace(SMALL, spacing_mm=6.0, threshold=0.5)
    landmarks = torch.tensor(task.fitted["landmarks"])

    def found(earlier, later):
        return segment(model, earlier, later, landmarks=landmarks, recipe=recipe)

    whole = found(earlier, later)
    assert whole.mask.shares_grid(later)
    assert whole.probability.shares_grid(later)
    assert torch.equal(whole.mask.data, whole.probability.data > 0.5)
    assert 0 < whole.probability.data.max() < 1

    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = torch.from_numpy(Rotation.from_euler("xyz", [0.2, -0.1, 0.3]).as_matrix())
    turn[:3, 3] = torch.tensor([12.0, -5, 40])
    turned = [Volume(v.data, turn @ v.world_from_vox) for v in (earlier, later)]
    back = torch.eye(4, dtype=torch.float64)
    back[0, 0], back[0, 3] = -1, earlier.shape[0] - 1
    stored = Volume(earlier.data.flip(1), earlier.world_from_vox @ back)
    for other in (found(*turned), found(stored, later)):
        torch.testing.assert_close(
            other.probability.data, whole.probability.data, rtol=0, atol=1e-3
        )


def test_prediction_is_plain_torchs(tmp_path):
    """On a grid that needs no resampling: windows by slices, the network as it was trained."""
    brick(tmp_path, "013", (4.0, 4.0, 4.0))
    pair = pair_of(open_dataset("msseg2", tmp_path)[0])
    torch.manual_seed(0)
    model = build("new_lesions").eval()
    for name, buffer in model.named_buffers():
        if name.endswith(("mean", "var")):
            buffer.uniform_(0.5, 1.5)
    found = segment(model, *pair, recipe=SMALL, batch=5).probability.data[0]
    aligned = align(*pair, recipe=SMALL)
    images = normalise(aligned.images, aligned.brain)
    shape = images.shape[1:]
    total, count = torch.zeros(shape), torch.zeros(shape)
    for i, j, k in itertools.product(*({*range(0, n - 16, 12), n - 16} for n in shape)):
        at = (slice(i, i + 16), slice(j, j + 16), slice(k, k + 16))
        earlier, later = images[:, *at, None, None].movedim((-2, -1), (1, 2))
        with torch.no_grad():
            total[at] += model(earlier, later)["logits"][0, 0].sigmoid()
        count[at] += 1
    moved = torch.linalg.inv(pair[1].world_from_vox) @ aligned.world_from_vox
    low = moved[:3, 3].round().long().tolist()
    box = tuple(slice(a, a + n) for a, n in zip(low, shape, strict=True))
    torch.testing.assert_close(found[box], total / count * aligned.brain, rtol=1e-4, atol=1e-5)
    rest = found.clone()
    rest[box] = 0
    assert not rest.any()


def test_bfloat16_keeps_the_map(task, cases):
    torch.manual_seed(0)
    model = build("new_lesions").eval()
    pair = pair_of(cases[0])
    landmarks = torch.tensor(task.fitted["landmarks"])
    recipe = replace(SMALL, spacing_mm=14.0)
    whole, half = (
        segment(model, *pair, landmarks=landmarks, recipe=recipe, dtype=dtype).probability.data
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert (whole - half).abs().max() < 0.02
    assert not torch.equal(whole, half)


def test_a_reference_stored_on_another_grid_counts_where_it_lies(tmp_path):
    task, case = oracle_of(tmp_path, lesions=3)
    truth = case.label("consensus")
    back = torch.eye(4, dtype=torch.float64)
    back[0, 0], back[0, 3] = -1, truth.shape[0] - 1
    mirrored = Volume(truth.data.flip(1), truth.world_from_vox @ back)
    write_nifti(case.labels["consensus"], mirrored)
    (row,) = task.evaluate(Oracle(), case)
    assert row.scores["dice"] == row.scores["f1"] == 1.0
    assert torch.equal(task.picture(Oracle(), case).reference.data, truth.data)
