"""Table 1 of the paper, and the Dice of its section 3."""

from cmrfast.methods.method import Published

#: Distances between the structures of both images: of centres, and of surfaces on average.
DISTANCES = ("lv_cd_mm", "lv_asd_mm", "myocardium_asd_mm", "rv_cd_mm", "rv_asd_mm")

_TABLE_1 = {
    "before": ("3.28 (1.83)", "2.53 (1.23)", "1.78 (0.78)", "4.36 (3.79)", "2.42 (1.20)"),
    "stn, 25": ("2.46 (1.31)", "2.20 (1.23)", "1.52 (0.84)", "2.92 (2.18)", "1.95 (1.02)"),
    "stn, 35": ("2.27 (1.38)", "2.09 (1.14)", "1.40 (1.12)", "2.52 (2.66)", "1.73 (1.02)"),
    "joint, 25": ("2.26 (1.34)", "1.96 (0.93)", "1.41 (0.71)", "2.60 (2.02)", "1.77 (0.84)"),
    "joint, 35": ("2.18 (1.46)", "1.94 (0.93)", "1.33 (0.73)", "2.53 (2.14)", "1.72 (0.97)"),
}
_DICE = {"cine_dice_percent": "84.73", "lge_dice_percent": "71.49"}  # of "joint"
_PROTOCOLS = {
    "25": "25 patients to train, 15 to validate, 5 to test, pairs of slices",
    "35": "35 patients to train, 5 to validate, 5 to test, pairs of slices",
}

_TITLES = {
    "before": "before registration",
    "stn, 25": "registration alone (stn), 25 patients",
    "stn, 35": "registration alone (stn), 35 patients",
    "joint, 25": "joint network (joint), 25 patients",
    "joint, 35": "joint network (joint), 35 patients",
}

PUBLISHED = {
    name: Published(
        _TITLES[name],
        _PROTOCOLS.get(name[-2:], "the test patients before registration"),
        dict(zip(DISTANCES, cells, strict=True)) | (_DICE if name == "joint, 35" else {}),
    )
    for name, cells in _TABLE_1.items()
}
