"""joint_scar: myocardium and scar from LGE stacks, slice by slice."""

from cmrfast.data.datasets import Files, MaskNeed, Needs, Structure
from cmrfast.methods.joint_scar.images import probabilities, segment
from cmrfast.methods.joint_scar.published import PUBLISHED
from cmrfast.methods.joint_scar.task import OVERLAPS, JointScarTask
from cmrfast.methods.method import LogUniform, Method, Objective, Uniform
from cmrfast.models.joint_scar import Config, JointScar, Recipe, loss

_SCAR = Structure(("scar",), plus=("no_reflow",))
_MYOCARDIUM = Structure(("myocardium",), plus=("edema", "scar", "no_reflow"))

__all__ = ["METHOD", "probabilities", "segment"]

METHOD = Method(
    name="joint_scar",
    paper="Xing et al. 2022, Joint deep learning for improved myocardial scar detection "
    "from cardiac MRI",
    model=JointScar,
    config=Config,
    recipe=Recipe,
    loss=loss,
    task=JointScarTask,
    datasets=("emidec", "myops"),
    needs=Needs(
        images=("LGE",),
        masks={"LGE": MaskNeed("LGE", {"myocardium": _MYOCARDIUM, "scar": _SCAR})},
        train=Files(images=("LGE",), labels=("LGE",)),
        predict=Files(images=("LGE",)),
    ),
    inputs=("images", "myocardium"),  # variant two_step masks its images with the myocardium
    objective=Objective("scar_dice", maximise=True),
    search={  # as in the paper
        "lr": LogUniform(1e-5, 1e-2),
        "dropout": Uniform(0.0, 0.6),
        "myocardium_weight": LogUniform(0.1, 10),
        "weight_decay": LogUniform(1e-7, 1e-3),
    },
    mean_loss=lambda config: config.dice_over == "image",
    structures={1: "myocardium", 2: "scar"},
    units="slices",
    overlaps=OVERLAPS,
    published=PUBLISHED,
)
