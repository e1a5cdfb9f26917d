"""New lesions on images: preparation, patches, prediction on the later image's grid, scores."""

import itertools
import threading
from dataclasses import fields, replace

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import nn

from cmrfast import FileError, methods
from cmrfast.data import Volume, open_dataset, read_nifti, write_nifti
from cmrfast.data.cache import Cache
from cmrfast.data.prepare import spacing_grid
from cmrfast.methods import Row, Task
from cmrfast.methods.new_lesions.brain import foreground
from cmrfast.methods.new_lesions.images import align, normalise, segment
from cmrfast.methods.new_lesions.task import NORMALISED
from cmrfast.models import build
from cmrfast.models.new_lesions import RECIPE, Config, Recipe, loss
from tests.support.cases import phantoms

SMALL = Recipe(
    bias_field=False,
    spacing_mm=4.0,
    patch=16,
    overlap=4,
    per_patient=8,
    batch=4,
    stored="float32",
)
METHOD = methods.get("new_lesions")
TASK = METHOD.task


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Three patients; the last has no new lesion."""
    folder = tmp_path_factory.mktemp("msseg2")
    return phantoms("msseg2", folder, cases=3, shrink=4)


@pytest.fixture(scope="module")
def ljubljana(tmp_path_factory):
    folder = tmp_path_factory.mktemp("open_ms")
    return phantoms("open_ms", folder, cases=1, shrink=4)


@pytest.fixture(scope="module")
def task(cases, tmp_path_factory):
    """Prepares each patient once."""
    return fitted(cases, cache=Cache(tmp_path_factory.mktemp("cache")))


def fitted(cases, recipe=SMALL, **options) -> Task:
    facts = TASK(Config(), recipe, **options).fit(cases)
    return TASK(Config(), recipe, facts, **options)


def changed(task, **changes):
    """The task with another recipe."""
    return TASK(Config(), replace(SMALL, **changes), task.fitted, cache=task.cache)


class Oracle(nn.Module):
    """Says what the task's own images say: new is what is far brighter than before."""

    def forward(self, earlier, later):
        return {"logits": (100 * (later - earlier - 2)).expand(-1, 5, -1, -1, -1)}


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


def test_batches(task, cases):
    feed = task.feed(cases, seed=3)
    assert len(feed) == 3 * 8
    batch = feed.batch(0, torch.arange(6))
    assert set(batch) == {"earlier", "later", "masks"}
    for name in METHOD.inputs:
        assert batch[name].shape == (6, 1, 16, 16, 16)
        assert batch[name].dtype == torch.float32
        assert batch[name].isfinite().all()
    assert batch["masks"].shape == (6, 5, 16, 16, 16)
    assert batch["masks"].dtype == torch.uint8
    assert batch["masks"].unique().tolist() == [0, 1]
    assert loss(build("new_lesions").eval()(*(batch[n] for n in METHOD.inputs)), batch)


def test_inner_maps_can_learn_all_lesions_of_their_visit(task, cases, ljubljana):
    config = Config(aux_weight=0.5, aux_on="all")
    own = TASK(config, SMALL, task.fitted, cache=task.cache)
    batch = own.feed(cases, seed=3).batch(0, torch.arange(24))
    assert set(batch) == {"earlier", "later", "masks", "lesions"}
    earlier, later = batch["lesions"].unbind(1)
    assert (earlier & later).any()  # most stay
    new = batch["masks"][:, 0] > 0
    assert later[new].float().mean() > 0.95
    assert earlier[new].float().mean() < 0.2
    model = build("new_lesions", aux_weight=0.5, aux_on="all").eval()
    outputs = model(batch["earlier"], batch["later"])
    assert outputs["maps"].shape[1] == 2 * 3
    maps = [x[:, None].expand(-1, 3, -1, -1, -1) for x in (earlier, later)]
    perfect = {**outputs, "maps": 200.0 * torch.cat(maps, 1) - 100}
    assert loss(perfect, batch, config)["aux"] == pytest.approx(-1, abs=1e-4)
    swapped = {**outputs, "maps": perfect["maps"].flip(1)}
    assert loss(swapped, batch, config)["aux"] > -0.99
    with pytest.raises(ValueError, match="new_lesions: batch must hold lesions"):
        loss(perfect, {"masks": batch["masks"]}, config)
    with pytest.raises(FileError, match="earlier_lesions"):
        own.feed(ljubljana, seed=3)


def test_a_batch_is_a_function_of_its_samples(task, cases):
    feed = task.feed(cases, seed=3)
    samples = torch.randperm(len(feed))
    whole = feed.batch(2, samples)
    parts = [{}, {}]

    def make(which, numbers):
        parts[which] = task.feed(cases, seed=3).batch(2, numbers)

    threads = [threading.Thread(target=make, args=(n, s)) for n, s in enumerate(samples.chunk(2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, x in whole.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), x)
    other = feed.batch(3, samples)
    assert not torch.equal(other["later"], whole["later"])
    assert not torch.equal(task.feed(cases, seed=4).batch(2, samples)["later"], whole["later"])


def test_patches_hold_new_lesions_as_often_as_asked(task, cases):
    often = changed(task, per_patient=400, on_lesion=1.0)
    feed = often.feed(cases[:1], seed=0)
    masks = feed.batch(0, torch.arange(len(feed)))["masks"][:, 0]
    assert masks.flatten(1).any(1).all()
    never = changed(task, per_patient=50).feed(cases[2:], seed=0)
    assert not never.batch(0, torch.arange(50))["masks"][:, 0].any()


def test_flips_act_on_images_and_masks_alike(task, cases):
    straight = task.feed(cases, seed=1).batch(0, torch.arange(16))
    flipped = changed(task, flip=0.5).feed(cases, seed=1)
    batch = flipped.batch(0, torch.arange(16))
    ways = set()
    for n in range(16):
        found = [
            axes
            for axes in ((), (1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3))
            if all(torch.equal(x[n].flip(axes), batch[name][n]) for name, x in straight.items())
        ]
        assert len(found) == 1
        ways.add(found[0])
    assert len(ways) > 3


def itk(volume):
    """SimpleITK's image of a volume; its axes are the other way round, its x and y too."""
    image = sitk.GetImageFromArray(volume.data[0].permute(2, 1, 0).contiguous().numpy())
    matrix = (torch.diag(torch.tensor([-1.0, -1, 1, 1])).double() @ volume.world_from_vox).numpy()
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((matrix[:3, :3] / spacing).flatten().tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    return image


def test_preparation_is_the_papers(ljubljana):
    """Against SimpleITK's resampling and numpy's percentiles, on a patient of thick slices."""
    spacing = 2.91  # at which no tie is left to rounding
    case, recipe = ljubljana[0], replace(SMALL, spacing_mm=spacing)
    prepared = fitted(ljubljana, recipe).prepared(NORMALISED, case)
    later, brain = case.image("later"), case.label("brain")
    shape, world_from_vox = spacing_grid(later.shape, later.world_from_vox, [spacing] * 3)
    grid = itk(Volume(torch.zeros(1, *shape), world_from_vox))

    def resampled(volume, interpolator):
        moved = sitk.Resample(itk(volume), grid, sitk.Transform(), interpolator)
        return sitk.GetArrayFromImage(moved).transpose(2, 1, 0)

    inside = resampled(brain, sitk.sitkNearestNeighbor) > 0
    box = ndimage.find_objects(inside.astype(int))[0]
    assert np.array_equal(prepared["brain"].numpy() > 0, inside[box])
    mask = resampled(case.label("consensus"), sitk.sitkNearestNeighbor)[box]
    for channel in prepared["masks"]:  # open_ms has no raters
        assert np.array_equal(channel.numpy(), mask)

    at = [1, 10, 20, 25, 30, 40, 50, 60, 70, 75, 80, 90, 99]
    images = [
        resampled(v.with_data(v.data.float()), sitk.sitkLinear).astype(np.float64)
        for v in (case.image("earlier"), later)
    ]
    own = np.array([np.percentile(image[inside], at) for image in images])
    landmarks = ((own - own[:, :1]) * 100 / (own[:, -1:] - own[:, :1])).mean(0)
    for image, percentiles, found in zip(images, own, prepared["images"], strict=True):
        values = image[inside]
        mapped = np.interp(values, percentiles, landmarks)
        for end, out in ((0, values < percentiles[0]), (-1, values > percentiles[-1])):
            two = slice(0, 2) if end == 0 else slice(-2, None)
            slope = np.diff(landmarks[two]) / np.diff(percentiles[two])
            mapped[out] = landmarks[end] + (values[out] - percentiles[end]) * slope
        wanted = np.zeros(shape)
        wanted[inside] = (mapped - mapped.mean()) / mapped.std()
        np.testing.assert_allclose(found.numpy(), wanted[box], rtol=0, atol=2e-3)


def test_raters_keep_their_channels(task, cases):
    prepared, pair = task.prepared(NORMALISED, cases[0]), align(*pair_of(cases[0]), recipe=SMALL)
    for name, mask in zip(
        ("consensus", "rater1", "rater2", "rater3", "rater4"), prepared["masks"], strict=True
    ):
        label = cases[0].label(name)
        there = torch.linalg.inv(label.world_from_vox) @ pair.world_from_vox
        at = mask.nonzero().double() @ there[:3, :3].T + there[:3, 3]
        near = (at + 0.5).floor().long().unbind(1)
        assert label.data[0][near].all()
        assert len(at) > 0


def pair_of(case):
    return case.image("earlier"), case.image("later")


def test_half_precision_keeps_a_thousandth(task, cases):
    half = changed(task, stored="float16")
    whole, stored = (t.prepared(NORMALISED, cases[0])["images"] for t in (task, half))
    assert stored.dtype == torch.float16
    torch.testing.assert_close(stored.float(), whole, rtol=1e-3, atol=1e-4)
    batch = half.feed(cases[:1], seed=0).batch(0, torch.arange(2))
    assert batch["later"].dtype == torch.float32


def test_the_cache_gives_the_same(task, cases, tmp_path):
    cache = Cache(tmp_path)
    cached = TASK(Config(), SMALL, cache=cache)
    assert cached.fit(cases[:2]) == TASK(Config(), SMALL).fit(cases[:2])
    entries = len(list(tmp_path.iterdir()))
    assert entries == 2
    again = TASK(Config(), SMALL, task.fitted, cache=cache)
    plain = TASK(Config(), SMALL, task.fitted).prepared(NORMALISED, cases[0])
    for _ in range(2):
        found = again.prepared(NORMALISED, cases[0])
        for name, x in plain.items():
            assert torch.equal(found[name], x)
    assert len(list(tmp_path.iterdir())) == entries + 1
    other = TASK(Config(), replace(SMALL, spacing_mm=5.0), cache=cache)
    assert other.fit(cases[:1]) != cached.fit(cases[:1])


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


def test_both_visits_see_one_brain(ljubljana):
    """Masks of both visits are united; what is outside is 0, as beyond the image."""
    earlier, later = pair_of(ljubljana[0])
    brain = ljubljana[0].label("brain")
    half = brain.data.clone()
    half[:, : half.shape[1] // 2] = 0
    parts = [brain.with_data(m) for m in (half, brain.data - half)]
    whole, union = (align(earlier, later, masks, recipe=SMALL) for masks in ([brain], parts))
    assert torch.equal(whole.brain, union.brain)
    assert torch.equal(whole.images, union.images)
    images = normalise(whole.images, whole.brain)
    assert not images[:, ~whole.brain].any()
    torch.testing.assert_close(images[:, whole.brain].mean(1), torch.zeros(2), rtol=0, atol=1e-5)
    assert whole.brain.any(dim=2).any(dim=1)[[0, -1]].all()  # the box is tight


@pytest.mark.parametrize("installed", [True, False])
def test_coil_shading_is_corrected_where_the_extra_is(cases, monkeypatch, caplog, installed):
    monkeypatch.setattr(
        "cmrfast.models.new_lesions.find_spec", lambda name: object() if installed else None
    )
    recipe = Recipe()
    assert recipe.bias_field is installed
    assert METHOD.configure({"bias_field": not installed})[1].bias_field is not installed
    TASK(Config(), replace(SMALL, histogram=False, bias_field=False)).fit(cases)
    assert ("coil shading is not corrected" in caplog.text) is not installed


def test_bias_field_is_taken_out(ljubljana):
    earlier, later = pair_of(ljubljana[0])
    brain = ljubljana[0].label("brain")
    inside, shape = brain.data[0] != 0, later.shape
    ramp = torch.linspace(0.6, 1.6, shape[0]).view(-1, 1, 1).expand(shape)
    flat = later.with_data((500 * inside.float() * (1 + 0.02 * torch.randn(shape)))[None])
    shaded = flat.with_data(flat.data * ramp)

    def spread(later, **changes):
        pair = align(earlier, later, [brain], recipe=replace(SMALL, **changes))
        return float(pair.images[1][pair.brain].std() / pair.images[1][pair.brain].mean())

    least = spread(flat)
    assert spread(shaded, bias_field=True) - least < 0.3 * (spread(shaded) - least)


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


def test_some_steps_lower_the_loss(task, cases):
    torch.manual_seed(0)
    model = build("new_lesions", dropout=0.0).train()
    batch = task.feed(cases[:2], seed=0).batch(0, torch.arange(2))
    optimiser = torch.optim.Adam(model.parameters(), 4e-3)
    losses = []
    for _ in range(4):
        optimiser.zero_grad()
        value = loss(model(batch["earlier"], batch["later"]), batch)["loss"]
        value.backward()
        optimiser.step()
        losses.append(value.item())
    assert losses[-1] < losses[0]


def test_real_images(real_images):
    """Thick slices of two patients; the mask of one overlays its image."""
    cases = open_dataset("open_ms", real_images / "open_ms_longitudinal")
    task = fitted(cases[:1], replace(SMALL, spacing_mm=3.0))
    landmarks = task.fitted["landmarks"]
    assert landmarks == sorted(landmarks)
    assert (landmarks[0], landmarks[-1]) == (0, pytest.approx(100))
    prepared = task.prepared(NORMALISED, cases[0])
    volume = prepared["masks"][0].sum() * 27
    label = cases[0].label("consensus")
    assert volume == pytest.approx(int(label.data.sum()) * np.prod(label.spacing_mm), rel=0.1)
    new = prepared["images"][1] - prepared["images"][0]
    assert new[prepared["masks"][0] > 0].mean() > 1  # brighter than before
    prediction = task.predict(Oracle(), cases[0])
    assert prediction.images["new_lesions"].volume.shares_grid(cases[0].image("later"))
    (row,) = task.evaluate(Oracle(), cases[0])
    assert row.scores["dice"] > 0.2  # the oracle knows no more than brightness


def test_patients_that_lack_something(task, cases, tmp_path):
    blind = replace(cases[0], labels={})
    unpaired = replace(cases[1], images={"later": cases[1].images["later"]})
    assert len(task.feed([blind, unpaired, cases[1]], seed=0)) == SMALL.per_patient
    message = (
        r"^new_lesions: none of 2 cases can be used: "
        rf"label: {blind.name} has no consensus label; it has none; "
        rf"image: {unpaired.name} has no earlier image; it has later$"
    )
    for call in (task.fit, lambda c: task.feed(c, seed=0)):
        with pytest.raises(FileError, match=message):
            call([blind, unpaired])
    assert task.evaluate(Oracle(), blind) == []
    assert task.picture(Oracle(), blind).reference is None
    with pytest.raises(FileError, match=r"has no earlier image"):
        task.predict(Oracle(), unpaired)
    one = replace(
        cases[0], labels={k: v for k, v in cases[0].labels.items() if k in ("consensus", "rater2")}
    )
    masks = TASK(Config(), SMALL, task.fitted).prepared(NORMALISED, one)["masks"]
    for channel, of in ((1, 0), (3, 0), (4, 0)):
        assert torch.equal(masks[channel], masks[of])
    assert not torch.equal(masks[2], masks[0])


def test_messages(cases):
    earlier, later = pair_of(cases[0])
    with pytest.raises(ValueError, match=r"^new_lesions: fitted must hold landmarks, from fit"):
        TASK(Config(), SMALL).feed(cases[:1], seed=0)
    two = Volume(later.data.repeat(2, 1, 1, 1), later.world_from_vox)
    with pytest.raises(ValueError, match=r"^new_lesions: later must have one channel; got 2$"):
        align(earlier, two)
    holed = earlier.with_data(earlier.data.float())
    holed.data[0, 3, 3, 3] = torch.nan
    with pytest.raises(ValueError, match=r"^new_lesions: earlier must be finite; got 1 NaN or inf"):
        align(holed, later)
    nowhere = later.with_data(torch.zeros_like(later.data))
    with pytest.raises(ValueError, match=r"^new_lesions: there must be brain in the later image's"):
        align(earlier, later, [nowhere])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spacing_mm": 0.0}, "spacing_mm must be positive; got 0.0"),
        ({"patch": 20}, "patch must be a multiple of 8; got 20"),
        ({"patch": 16, "overlap": 16}, "overlap must be 0 to 15; got 16"),
        ({"per_patient": 0}, "per_patient must be at least 1; got 0"),
        ({"threshold": 1.5}, r"threshold must lie in \[0, 1\]; got 1.5"),
        ({"stored": "int8"}, "stored must be one of float16, float32; got 'int8'"),
    ],
)
def test_recipe_messages(changes, message):
    with pytest.raises(ValueError, match=f"^new_lesions: {message}$"):
        Recipe(**changes)


def test_recipe_is_the_papers():
    last = RECIPE.lr * RECIPE.lr_factor ** (RECIPE.epochs - 1)
    assert last == pytest.approx(6.569281e-5)
    assert 40 * RECIPE.per_patient / RECIPE.batch == 872
    assert (RECIPE.patch, RECIPE.overlap, RECIPE.threshold) == (56, 14, 0.6)
    assert not {f.name for f in fields(Recipe)} & {f.name for f in fields(Config)}
