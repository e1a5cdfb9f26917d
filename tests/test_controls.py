"""Controls of the studies: they accept the phantoms, and find what is planted."""

from dataclasses import asdict

import torch

from cmrfast.models.siamese_lesion import Recipe
from studies import controls, design, page, patients
from tests.support.cases import phantoms

PATCHES = Recipe(spacing_mm=2.0, stride=3)


def lge_masks(case):
    """Wall and lesion of a subject's LGE slices, as aligned pairs hold them."""
    return {
        name: case.label(f"lge_{name}").data[0].movedim(-1, 0) for name in ("myocardium", "lesion")
    }


def test_position_and_wall_shape_do_not_tell_a_lesion(tmp_path):
    cases = phantoms("t1_lge", tmp_path, cases=60, shrink=2)
    control = controls.shape_alone([lge_masks(case) for case in cases], 32, PATCHES)
    assert control.passed
    assert 40 < control.value <= 60


def ring(thick):
    """A wall, with a lesion in its septum if it is thick."""
    i, j = torch.meshgrid(*[torch.arange(64.0) - 32] * 2, indexing="ij")
    radius = i.hypot(j)
    wall = (radius < (18 if thick else 15)) & (radius > 10)
    return {"myocardium": wall[None], "lesion": (wall & (j < -0.8 * radius) & thick)[None]}


def test_a_wall_that_tells_the_lesion_is_found():
    thick = torch.rand(40, generator=torch.Generator().manual_seed(0)) < 0.5
    control = controls.shape_alone([ring(one) for one in thick], 32, PATCHES)
    assert control.value > 95
    assert not control.passed


def test_a_page_says_what_a_control_found():
    found = [
        design.Control("shape", 51.0, "at most 60", True),
        design.Control("no lesion", 77.2, "45 to 55", False),
        design.Control("LGE itself", 93.0, "reported", None),
        design.Control("affine", None, "not run", None),
    ]
    text = page.power({"power": [], "controls": [asdict(control) for control in found]})
    assert text.splitlines()[1:] == [
        "* control, shape: 51; accepted if at most 60: passed",
        "* control, no lesion: 77.2; accepted if 45 to 55: not passed",
        "* control, LGE itself: 93 (reported)",
        "* control, affine: - (not run)",
    ]


def test_patients_get_the_lge_of_others_at_their_place(tmp_path):
    first, other = phantoms("t1_lge", tmp_path / "own", cases=2, shrink=3)
    own = first.image("lge")
    assert patients._moved_lge(other, first).shares_grid(own)
    torch.testing.assert_close(patients._moved_lge(first, first).data, own.data.float())
