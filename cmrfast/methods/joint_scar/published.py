"""What the paper's table and text give; scores of the scar are plots only."""

from cmrfast.methods.method import Published

_PROTOCOL = "140 patients (510 slices) to train, 28 (125 slices) to test"

PUBLISHED = {
    "two_step": Published("two steps (two_step)", _PROTOCOL, {"myocardium_dice": "0.894"}),
    "mtl": Published("multi-task learning (mtl)", _PROTOCOL, {"myocardium_dice": "0.900"}),
    "jdl": Published("joint deep learning (jdl)", _PROTOCOL, {"myocardium_dice": "0.891"}),
}
