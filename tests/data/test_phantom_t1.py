"""The T1/LGE phantom: lesions do not depend on the wall, LGE shows them, T1 not always."""

import numpy as np
import pytest
import scipy.stats
import torch

from cmrfast.data.phantom.heart import Heart
from cmrfast.data.phantom.relaxation import FIT_MS, Relaxation
from cmrfast.methods.siamese_lesion.lesions import lesion_mask
from cmrfast.ops import resample
from tests.support.cases import phantoms


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return list(phantoms("t1_lge", tmp_path_factory.mktemp("t1_lge"), cases=80, shrink=2))


def mask(case, name):
    return case.label(name).data[0] > 0


def wall_share(case):
    """Area of the wall relative to that of wall and cavity, a measure of hypertrophy."""
    wall = mask(case, "lge_myocardium").any(-1).nonzero().double()
    away = (wall - wall.mean(0)).norm(dim=1)
    return 1 - (away.quantile(0.05) / away.quantile(0.95)).item() ** 2


def test_lesions_are_in_thick_and_thin_walls(cohort):
    shares = np.array([wall_share(case) for case in cohort])
    lesion = np.array([bool(mask(case, "lge_lesion").any()) for case in cohort])
    thick = shares > np.median(shares)
    for group in (thick, ~thick):
        assert 0.4 < lesion[group].mean() < 0.95


def test_lesions_are_all_around_and_in_both_slices(cohort):
    angles, slices = [], []
    for case in cohort:
        for k in range(2):
            wall, lesion = (mask(case, f"lge_{n}")[..., k] for n in ("myocardium", "lesion"))
            if lesion.any():
                x, y = (lesion.nonzero().double() - wall.nonzero().double().mean(0)).T
                angles += torch.atan2(y, x).tolist()
                slices.append(k)
    counts = np.histogram(angles, np.linspace(-np.pi, np.pi, 7))[0] / len(angles)
    assert counts.min() > 0.06
    assert 0.3 < np.mean(slices) < 0.7
    assert 0.4 < len(slices) / (2 * len(cohort)) < 0.75


def test_the_six_sd_rule_finds_the_drawn_lesion(cohort):
    dices, above_scar, false = [], [], []
    for case in cohort:
        image = case.image("lge").data[0].float()
        wall, lesion, reference = (
            mask(case, f"lge_{name}") for name in ("myocardium", "lesion", "reference")
        )
        for k in range(2):
            found = lesion_mask(image[..., k], wall[..., k], reference[..., k])
            true = lesion[..., k]
            if true.any():
                dices.append(float(2 * (found & true).sum() / (found.sum() + true.sum())))
                above_scar.append(float(found[true].double().mean()))
            else:
                false.append(int(found.sum()))
    assert np.mean(dices) >= 0.8
    assert np.mean(above_scar) > 0.85
    assert len(false) >= 10
    assert np.mean(np.array(false) == 0) > 0.9


def test_a_map_is_bounded_as_by_the_scanners_fit(cohort):
    muscle = torch.cat([c.image("t1").data[0][mask(c, "t1_myocardium")].double() for c in cohort])
    for case in cohort:
        t1 = case.image("t1").data[0].double()
        assert t1.min() >= FIT_MS[0]
        assert t1.max() <= FIT_MS[1]
        assert ((t1 - muscle.mean()) > 8 * muscle.std()).double().mean() < 0.06
        air = t1[:6, :6]
        assert 200 < air.std() < 400
        assert abs(air.mean() - muscle.mean()) < 3 * muscle.std()


def test_one_number_of_a_patch_says_little(cohort):
    """Patients differ in mean T1 by as much as scar does."""
    values, positive, contrasts = [], [], []
    for case in cohort:
        t1, wall = case.image("t1"), mask(case, "t1_myocardium")
        there = case.label("lge_lesion")
        moved = resample(
            there.data, there.world_from_vox, t1.world_from_vox, t1.shape, mode="nearest"
        )
        lesion, map_ms = moved[0] > 0, t1.data[0].double()
        assert 900 < map_ms[wall].median() < 1200
        half = round(32 / t1.spacing_mm[0])
        for k in range(2):
            inside, outside = (lesion & wall)[..., k], (wall & ~lesion)[..., k]
            if inside.sum() > 5:
                medians = [map_ms[..., k][part].median().item() for part in (inside, outside)]
                contrasts.append(medians[0] - medians[1])
            for i, j in wall[..., k].nonzero()[::9].tolist():
                window = np.s_[max(i - half, 0) : i + half, max(j - half, 0) : j + half, k]
                values.append(map_ms[window][wall[window]].mean().item())
                held, total = lesion[window].sum(), lesion[..., k].sum()
                positive.append(bool(total) and bool(held >= 0.25 * total))
    positive, ranks = np.array(positive), scipy.stats.rankdata(values)
    count = positive.sum()
    area = (ranks[positive].sum() - count * (count + 1) / 2) / (count * (~positive).sum())
    assert 20 < np.mean(contrasts) < 130
    assert max(area, 1 - area) < 0.75


def test_relaxation_has_confounders():
    """Diffuse rises without LGE, LGE without a rise, and artefacts, whatever the heart."""
    rng = np.random.default_rng(0)
    heart = Heart.random(rng, thick=False, lesion="none")
    drawn = [Relaxation.random(rng, heart) for _ in range(400)]
    assert 0.3 < np.mean([one.diffuse_ms > 0 for one in drawn]) < 0.5
    assert 0.05 < np.mean([one.lesion_ms == 0 for one in drawn]) < 0.2
    errors = np.concatenate([one.artefacts for one in drawn])[:, 4]
    assert 0.5 < np.mean([len(one.artefacts) > 0 for one in drawn]) < 0.8
    assert (errors > 0).any()
    assert (errors < 0).any()
    one = next(one for one in drawn if len(one.artefacts) == 1)
    x, y, z, _, size = one.artefacts[0]
    there, far = one.artefact_ms(*(np.array([p, p + 100], np.float32) for p in (x, y, z)))
    assert there == pytest.approx(size)
    assert abs(far) < 1e-3


def test_t1_of_lesions_can_be_set_and_changes_nothing_else(tmp_path):
    options = {"cases": 8, "shrink": 3, "seed": 1}
    cohorts = [
        list(phantoms("t1_lge", tmp_path / str(ms), lesion_t1_ms=ms, **options)) for ms in (0, 150)
    ]
    changed = 0
    for none, full in zip(*cohorts, strict=True):
        for name in none.labels:
            assert torch.equal(none.label(name).data, full.label(name).data)
        assert torch.equal(none.image("lge").data, full.image("lge").data)
        rise = (full.image("t1").data - none.image("t1").data)[0].double()
        lesion = mask(none, "lge_lesion").any()
        assert lesion or rise.abs().max() == 0
        changed += bool(lesion)
        if lesion:
            assert rise.min() >= 0
            assert 100 < rise.max() <= 151
            assert (rise > 0).double().mean() < 0.05
    assert 2 <= changed <= 7
