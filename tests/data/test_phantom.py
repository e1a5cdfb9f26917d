"""Phantoms: their layouts, their geometry, and that they are neither trivial nor hopeless."""

import hashlib

import nibabel
import numpy as np
import pytest
import scipy.stats
import torch

from cmrfast.data import Volume
from cmrfast.data.datasets import open_dataset
from cmrfast.data.nifti import read_nifti
from cmrfast.data.phantom import write_phantoms
from cmrfast.data.phantom.brain_sets import _new_lesions
from cmrfast.data.phantom.heart import Heart
from cmrfast.data.phantom.lesions import _lesion
from cmrfast.data.phantom.scanner import Waves, add_rician_noise, rotation
from cmrfast.data.phantom.sequences import SEQUENCES, _vary_signals
from cmrfast.data.slices import slice_pairs
from cmrfast.errors import FileError
from cmrfast.ops import resample

CASES = {"t1_lge": 6, "emidec": 8, "myops": 2, "mscmrseg": 3, "msseg2": 4, "open_ms": 1}
VALUES = {
    "emidec": {0, 1, 2, 3, 4},
    "myops": {0, 200, 500, 600, 1220, 2221},
    "mscmrseg": {0, 200, 500, 600},
    "msseg2": {0, 1},
    "open_ms": {0, 1},
    "t1_lge": {0, 1},
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Each layout, written once when first asked for."""
    made = {}

    def get(layout):
        if layout not in made:
            folder = tmp_path_factory.mktemp(layout)
            shrink = 2.0 if layout in ("msseg2", "open_ms") else 1.5
            write_phantoms(layout, folder, cases=CASES[layout], shrink=shrink, seed=3)
            made[layout] = open_dataset(layout, folder)
        return made[layout]

    return get


def digests(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def moved_to(volume, target, mode="linear"):
    data = volume.data.float() if mode == "linear" else volume.data
    args = volume.world_from_vox, target.world_from_vox, target.shape
    return resample(data, *args, mode=mode)[0].numpy()


def best_threshold_dice(image, mask):
    """The highest Dice that any threshold reaches."""
    order = np.argsort(image, axis=None)[::-1]
    hits = np.cumsum(mask.ravel()[order])
    return float((2 * hits / (np.arange(1, hits.size + 1) + mask.sum())).max())


@pytest.mark.parametrize("layout", CASES)
def test_same_seed_same_bytes(layout, tmp_path, threads):
    for name, seed, count in (("a", 1, 1), ("b", 1, 2), ("c", 2, 2)):
        threads(count)
        write_phantoms(layout, tmp_path / name, cases=1, shrink=4, seed=seed)
    first, again, other = (digests(tmp_path / name) for name in "abc")
    assert first == again
    images = [path for path in first if path.name.endswith(".nii.gz")]
    assert sum(first[path] == other.get(path) for path in images) <= len(images) // 2


@pytest.mark.parametrize("layout", CASES)
def test_layout_is_whole(layout, sets):
    data = sets(layout)
    assert len(data) == CASES[layout]
    stored, seen = set(), {}
    for case in data:
        assert case.faults == ()
        assert not case.check()
        for name, path in case.labels.items():
            values = np.unique(np.asanyarray(nibabel.load(path).dataobj))
            if name != "brain":
                stored |= set(values.tolist())
            seen.setdefault(name, set()).update(case.label(name).data.unique().tolist())
    assert stored == VALUES[layout]
    assert all(len(found) > 1 for found in seen.values())


@pytest.mark.parametrize("layout", CASES)
def test_masks_lie_on_their_images(layout, sets):
    case = sets(layout)[0]
    for name in case.labels:
        assert case.label(name).shares_grid(case.image(case.labelling[name].on))


@pytest.mark.parametrize(("layout", "sequence"), [("mscmrseg", "C0"), ("emidec", "LGE")])
def test_blood_is_brighter_than_muscle(layout, sequence, sets):
    case = sets(layout)[0]
    image, label = case.image(sequence).data.float(), case.label(sequence)
    meaning = case.labelling[sequence]
    blood, wall = (image[meaning.mask(label, name).data] for name in ("lv", "myocardium"))
    assert blood.median() > wall.median() + wall.std()


def test_three_sequences_of_one_heart(sets):
    spacing = {"C0": (1.25, 8), "T2": (1.35, 14), "LGE": (0.75, 5)}
    slices = {"C0": range(8, 16), "T2": [3], "LGE": range(14, 25)}
    dices = []
    for case in sets("mscmrseg"):
        grids = {name: case.image(name) for name in spacing}
        for name, (mm, gap) in spacing.items():
            assert grids[name].spacing_mm == pytest.approx((1.5 * mm, 1.5 * mm, gap), rel=1e-4)
            assert grids[name].shape[2] in slices[name]
            turn = grids[name].world_from_vox[:3, :3].abs()
            assert (turn / turn.amax(0)).median() > 0.1  # oblique
        assert len(slice_pairs(grids["C0"], grids["LGE"])) > 8
        cine, late = case.label("C0"), case.label("LGE")
        there = moved_to(cine, late, "nearest") == 1
        here = late.data[0].numpy() == 1
        dices.append(2 * (there & here).sum() / (there.sum() + here.sum()))
    # the sequences show one heart, and lie a little apart
    assert min(dices) > 0.6
    assert max(dices) < 0.97


def test_stacks_extend_beyond_base_and_apex(sets):
    for case in sets("mscmrseg"):
        labelled = (case.label("LGE").data[0] != 0).flatten(0, 1).any(0).nonzero().flatten()
        first, last = labelled.min(), case.image("LGE").shape[2] - 1 - labelled.max()
        assert 1 <= first + last <= 8
        assert len(labelled) >= 10


def test_muscle_is_null_to_grey_and_blood_as_bright_as_scar():
    """The inversion time is not exactly right, in either direction."""
    rng = np.random.default_rng(0)
    signals = [_vary_signals(rng, SEQUENCES["lge"]) for _ in range(300)]
    muscle, blood = (
        np.array([s[name] / s["scar"] for s in signals]) for name in ("myocardium", "blood")
    )
    assert (np.abs(muscle) < 0.06).mean() > 0.15  # near null
    assert (muscle > 0.25).mean() > 0.15
    assert (muscle < -0.06).mean() > 0.05
    assert (blood > 0.9).mean() > 0.2
    assert blood.min() > 0.5


def test_intensities_drift_between_patients(sets):
    for sequence in ("C0", "T2"):
        scale = [np.percentile(case.image(sequence).data, 99) for case in sets("mscmrseg")]
        assert max(scale) > 1.3 * min(scale)


def test_infarcts_may_be_large_and_obstructed():
    rng = np.random.default_rng(0)
    hearts = [Heart.random(rng, thick=False, lesion="infarct") for _ in range(200)]
    scars = [heart.scars[0] for heart in hearts]
    assert 0.2 < np.mean([scar.half_angle > 0.95 for scar in scars]) < 0.5
    assert 0.3 < np.mean([scar.no_reflow for scar in scars]) < 0.8


def test_hearts_differ(sets):
    cavities, walls = [], []
    for case in sets("emidec"):
        label = case.label("LGE").data
        cavities.append(float((label == 1).sum()) * np.prod(case.image("LGE").spacing_mm))
        walls.append(float((label >= 2).sum()) / float((label == 1).sum()))
    assert min(cavities) > 30e3
    assert max(cavities) < 250e3  # mm³
    assert np.std(cavities) > 0.08 * np.mean(cavities)
    assert np.std(walls) > 0.08 * np.mean(walls)


def test_a_threshold_does_not_find_scar(sets):
    for case in sets("emidec"):
        scar = (case.label("LGE").data >= 3).numpy()
        if scar.any():
            assert best_threshold_dice(case.image("LGE").data.numpy(), scar) < 0.35


def best_band_dice(image, mask, bins=48):
    """The highest Dice that any pair of thresholds reaches."""
    edges = np.unique(np.percentile(image, np.linspace(0, 100, bins)))
    place = np.digitize(image, edges[1:-1])
    counts = np.bincount(place.ravel(), minlength=len(edges) - 1)
    hits = np.bincount(place[mask], minlength=len(edges) - 1)
    best = 0.0
    for low in range(len(counts)):
        found, right = counts[low:].cumsum(), hits[low:].cumsum()
        best = max(best, float((2 * right / (found + mask.sum())).max()))
    return best


@pytest.mark.parametrize("sequence", ["C0", "T2", "LGE"])
@pytest.mark.parametrize("structure", ["lv", "myocardium", "rv"])
def test_two_thresholds_do_not_find_a_chamber(sequence, structure, sets):
    for case in sets("mscmrseg"):
        mask = case.labelling[sequence].mask(case.label(sequence), structure).data[0].numpy()
        assert best_band_dice(case.image(sequence).data[0].numpy(), mask) < 0.6


def test_new_lesions_are_not_a_threshold(sets):
    later_dice, change_dice = [], []
    for case in sets("msseg2"):
        truth = case.label("consensus").data[0].numpy() > 0
        if not truth.any():
            continue
        earlier, later = (case.image(name).data[0].numpy() for name in ("earlier", "later"))
        later_dice.append(best_threshold_dice(later, truth))
        scaled = (x / np.percentile(x[x > 0.2 * x.max()], 50) for x in (later, earlier))
        change_dice.append(best_threshold_dice(np.subtract(*scaled), truth))
    assert len(later_dice) >= 2
    assert max(later_dice) < 0.3
    assert np.mean(change_dice) < 0.45


def test_raters_differ_and_some_patients_have_nothing_new(sets):
    empty, dices = 0, []
    for case in sets("msseg2"):
        masks = [case.label(f"rater{n}").data > 0 for n in range(1, 5)]
        consensus = case.label("consensus").data > 0
        empty += not consensus.any()
        if not consensus.any():
            continue
        assert (sum(mask & consensus for mask in masks) > 0).sum() > 0.6 * consensus.sum()
        for one in range(4):
            for two in range(one):
                total = masks[one].sum() + masks[two].sum()
                dices.append(float(2 * (masks[one] & masks[two]).sum() / total))
    assert empty == 1
    assert 0.3 < np.mean(dices) < 0.95
    assert max(dices) < 1


def test_most_patients_have_few_small_new_lesions():
    rng = np.random.default_rng(0)
    counts = np.array([_new_lesions(rng, number) for number in range(1, 401)])
    assert (counts == 0).mean() == 0.25
    assert 0.4 < ((counts > 0) & (counts <= 3)).mean() < 0.65
    centre = np.zeros(3, np.float32)
    new, old = (
        np.median([_lesion(rng, centre, size, True).radius_mm for _ in range(300)])
        for size in ((0.0, 1.0), (1.0, 1.0))
    )
    assert 2 < new < 0.9 * old


def test_histories_tell_new_lesions_from_old_ones(sets):
    for case in sets("msseg2"):
        path = case.images["later"].with_name("lesions.nii.gz")
        became, later = read_nifti(path), case.image("later")
        assert became.shares_grid(later)
        new, old = became.data == 4, (became.data > 0) & (became.data < 4)
        before, after = (case.label(f"{visit}_lesions").data > 0 for visit in ("earlier", "later"))
        assert torch.equal(before | after, became.data > 0)
        assert not (before & new).any()
        assert torch.equal(before[became.data == 1], after[became.data == 1])
        consensus = case.label("consensus").data > 0
        assert (consensus & ~new).sum() <= 0.02 * consensus.sum()
        assert old.any()
        # lesion is bright at the later visit where it stayed
        flair, stayed = later.data.float(), became.data == 1
        assert flair[stayed].median() > flair[flair > flair.max() / 5].median()


def test_open_ms_marks_every_change(sets):
    case = sets("open_ms")[0]
    gt, brain = (case.label(name).data > 0 for name in ("consensus", "brain"))
    assert case.image("earlier").spacing_mm == pytest.approx((1.44, 1.44, 3.0))
    assert case.image("earlier").orientation == "LPS"
    assert 1.0e6 < float(brain.sum()) * 1.44 * 1.44 * 3 < 2.2e6  # mm³
    assert (gt & brain).sum() > 0.95 * gt.sum()
    assert {"sex", "age"} <= case.info.keys()
    assert "later_T2W" in case.images


def test_visits_are_misplaced_a_little(sets):
    """Two visits of one brain agree closely, and not exactly."""
    case = sets("msseg2")[0]
    earlier, later = (case.image(name).data.flatten().float() for name in ("earlier", "later"))
    assert 0.9 < torch.corrcoef(torch.stack([earlier, later]))[0, 1] < 0.995


def test_volumes_open_in_nibabel_alike(sets):
    for layout in ("mscmrseg", "msseg2"):
        case = sets(layout)[0]
        for name, path in case.images.items():
            theirs, ours = nibabel.load(path), case.image(name)
            assert isinstance(ours, Volume)
            np.testing.assert_allclose(theirs.affine, ours.world_from_vox, atol=1e-4)
            np.testing.assert_array_equal(np.asanyarray(theirs.dataobj), ours.data[0])


def test_noise_is_rician():
    rng = np.random.default_rng(0)
    for signal in (0.0, 2.0):
        sample = add_rician_noise(rng, np.full(20000, signal, np.float32), 1.5)
        assert (
            scipy.stats.kstest(sample, scipy.stats.rice(signal / 1.5, scale=1.5).cdf).pvalue > 1e-3
        )


def test_waves_have_unit_variance():
    rng = np.random.default_rng(0)
    x, y, z = (rng.uniform(-500, 500, 20000).astype(np.float32) for _ in range(3))
    value = Waves.random(rng, 20.0)(x, y, z)
    assert abs(value.mean()) < 0.05
    assert value.std() == pytest.approx(1, abs=0.05)


def test_rotation_is_one():
    turn = rotation(0.3, -0.2, 1.1)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1)


def test_progress_counts_patients(tmp_path):
    seen = []
    options = {"cases": 2, "shrink": 4, "progress": lambda *done: seen.append(done)}
    assert write_phantoms("emidec", tmp_path / "x", **options) == tmp_path / "x"
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        ("acdc", {}, "layout must be one of t1_lge, emidec, .*; got 'acdc'"),
        ("emidec", {"cases": 0}, "cases must be at least 1; got 0"),
        ("emidec", {"seed": -1}, "seed must not be negative; got -1"),
        ("emidec", {"shrink": 9}, "shrink must be between 1 and 4; got 9"),
        ("emidec", {"lesion_t1_ms": 0}, "lesion_t1_ms is an option of t1_lge, not of emidec"),
    ],
)
def test_what_cannot_be_written(layout, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_phantoms(layout, tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(FileError, match=r"write_phantoms: .*/new: No space left on device"):
        write_phantoms("emidec", tmp_path / "new", cases=1, shrink=4)


def test_never_among_other_files(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileError, match="must be a new or empty folder; it holds files"):
        write_phantoms("emidec", tmp_path)
    with pytest.raises(FileError, match=r"mine\.txt: "):
        write_phantoms("emidec", tmp_path / "mine.txt")
