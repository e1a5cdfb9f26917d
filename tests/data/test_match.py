"""Names of any data set matched to those of a method, and the values of its masks."""

from pathlib import Path

import pytest

from cmrfast.data.datasets import Case, Files, Labelling, MaskNeed, Needs, Structure, match
from cmrfast.data.datasets.case import binary
from cmrfast.data.datasets.names import split_label
from cmrfast.data.datasets.table import labelling_of

SCAR = Structure(("scar",), plus=("no_reflow",))
WALL = Structure(("myocardium",), plus=("edema", "scar", "no_reflow"))
STRUCTURES = {"myocardium": WALL, "scar": SCAR}
ONE = Needs(
    ("LGE",), {"LGE": MaskNeed("LGE", STRUCTURES)}, Files(("LGE",), ("LGE",)), Files(("LGE",))
)
TWO = Needs(
    ("C0", "LGE"),
    {name: MaskNeed(name, {"myocardium": WALL}) for name in ("C0", "LGE")},
    Files(("C0", "LGE"), ("C0", "LGE")),
    Files(("C0", "LGE")),
)


def case(images, labelling):
    return Case(
        "p",
        {name: Path(f"{name}.nii") for name in images},
        {name: Path(f"{name}_label.nii") for name in labelling},
        labelling,
    )


def values(labelling):
    """Value in the file → the structures that it belongs to."""
    return {
        theirs: {name for name, ours_of in labelling.classes.items() if ours in ours_of}
        for theirs, ours in labelling.ours.items()
        if ours
    }


NAMED = Labelling(
    "image",
    {0: 0, 10: 1, 20: 2, 30: 3, 40: 4, 50: 5},
    {"LV cavity": (1,), "Myo": (2,), "Infarct": (3,), "MVO": (4,), "oedema": (5,)},
    on_all=True,
)
BOTH = {"myocardium", "scar"}


@pytest.mark.parametrize("image", ["LGE", "lge", "DE", "PSIR", "Late gadolinium"])
def test_names_and_values(image):
    found = match(case([image, "T2"], {"image": NAMED}), ONE)
    assert found.images == {"LGE": Path(f"{image}.nii"), "T2": Path("T2.nii")}
    assert found.labels == {"LGE": Path("image_label.nii")}
    assert values(found.labelling["LGE"]) == {
        20: {"myocardium"},
        30: BOTH,
        40: BOTH,
        50: {"myocardium"},
    }
    assert not ONE.missing(found, ONE.train)
    # What nnU-Net gets of a structure is its own value, not that of a part.
    assert next(v for v, ours in found.labelling["LGE"].ours.items() if ours == 1) == 20


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"scar": (30,)}, {20: {"myocardium"}, 30: BOTH, 40: {"myocardium"}, 50: {"myocardium"}}),
        ({"myocardium": (10,)}, {10: {"myocardium"}, 30: BOTH, 40: BOTH}),
        ({"myocardium": (20,), "scar": (10, 30)}, {20: {"myocardium"}, 10: BOTH, 30: BOTH}),
    ],
)
def test_given_values_replace_those_of_the_layout(given, expected):
    found = match(case(["LGE"], {"image": NAMED}), ONE, given)
    assert values(found.labelling["LGE"]) == expected


def test_values_without_names_are_missing_until_they_are_given():
    own = case(["LGE"], {"LGE_label": labelling_of("", on="LGE")})
    assert ONE.missing(match(own, ONE), ONE.train) == ["LGE label (myocardium, scar)"]
    found = match(own, ONE, {"myocardium": (200,), "scar": (2221,)})
    assert values(found.labelling["LGE"]) == {200: {"myocardium"}, 2221: BOTH}
    assert found.labelling["LGE"].others
    assert ONE.missing(match(own, ONE, {"scar": (1,)}), ONE.train)


def test_a_file_of_one_structure_does_not_take_the_values_of_another():
    labelling = {"scar": binary("scar", on="LGE"), "LV myo": binary("myocardium", on="LGE")}
    own = case(["LGE"], labelling)
    found = match(own, ONE, {"scar": (255,)})
    first, second = (values(found.labelling[key]) for key in ("LGE", "LGE: scar"))
    assert (first, second) == ({1: {"myocardium"}}, {255: BOTH})
    assert found.labelling["LGE"].drawn_over == ("LGE: scar",)
    assert found.label_files("LGE") == {
        "LGE": Path("LV myo_label.nii"),
        "LGE: scar": Path("scar_label.nii"),
    }


def test_a_mask_needs_all_files_that_hold_its_structures():
    labelling = {
        name: binary(name, on="LGE") for name in ("myocardium", "scar", "no_reflow", "brain")
    }
    whole = case(["LGE"], labelling)
    assert [*match(whole, ONE).labels] == ["LGE", "LGE: scar", "LGE: no_reflow"]
    for name, is_there in (("scar", False), ("no_reflow", True), ("brain", True)):
        labels = {key: path for key, path in whole.labels.items() if key != name}
        found = match(Case("p", whole.images, labels, labelling), ONE)
        assert ("LGE" in found.labels) is is_there


def test_a_mask_serves_the_image_that_it_lies_on():
    own = case(["cine", "LGE"], {"LGE_wall": binary("myocardium", on="LGE")})
    assert [*match(own, TWO).labels] == ["LGE"]
    assert [*match(case(["LGE"], {"x": binary("myocardium", on="cine")}), TWO).labels] == []
    own = case(["cine", "LGE"], {"wall": binary("myocardium", on="")})
    assert TWO.missing(match(own, TWO), TWO.train) == [
        "C0 label (myocardium)",
        "LGE label (myocardium)",
    ]
    assert [*match(own, ONE).labels] == []  # no scar
    own = case(["cine", "LGE"], {"image": NAMED})
    assert match(own, TWO).labels == dict.fromkeys(("C0", "LGE"), Path("image_label.nii"))


def test_the_method_s_own_name_is_preferred():
    assert match(case(["DE", "LGE"], {}), ONE).images["LGE"] == Path("LGE.nii")
    assert match(case(["bSSFP", "c0"], {}), TWO).images["C0"] == Path("c0.nii")
    assert ONE.missing(match(case(["T2"], {}), ONE), ONE.predict) == ["LGE image"]


def test_an_unknown_structure_is_named():
    with pytest.raises(ValueError, match=r"^labels: structures are myocardium, scar; got rv$"):
        match(case(["LGE"], {}), ONE, {"rv": (1,)})


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("LGE", None),
        ("scar", ("", "scar")),
        ("LGE no-reflow", ("lge", "no_reflow")),
        ("t1_myocardium", ("t1", "myocardium")),
        ("LGE_label", ("lge", "")),
        ("lv_myocardium", ("", "myocardium")),
        ("brain mask", ("", "brain")),
        ("later_new_lesion", ("later", "new_lesion")),
        ("rater1", ("", "rater1")),
    ],
)
def test_what_the_name_of_a_label_says(name, parts):
    assert split_label(name) == parts
