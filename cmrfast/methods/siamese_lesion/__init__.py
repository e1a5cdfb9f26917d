"""siamese_lesion: classifies patches of T1 maps; LGE is needed only for training."""

from cmrfast.data.datasets import Files, MaskNeed, Needs, Structure
from cmrfast.methods.method import LogUniform, Method, Objective, Uniform
from cmrfast.methods.siamese_lesion.images import LesionMap, classify
from cmrfast.methods.siamese_lesion.published import PUBLISHED
from cmrfast.methods.siamese_lesion.task import SiameseLesionTask
from cmrfast.models.siamese_lesion import Config, Recipe, SiameseLesion, loss

_MYOCARDIUM = {"myocardium": Structure(("myocardium",), plus=("edema", "scar", "no_reflow"))}
_LESION = {"lesion": Structure(("lesion", "scar"), plus=("no_reflow",))}

__all__ = ["METHOD", "LesionMap", "classify"]

METHOD = Method(
    name="siamese_lesion",
    paper="Golub et al. 2022, Convolutional siamese networks for myocardial lesion "
    "classification in T1 maps",
    model=SiameseLesion,
    config=Config,
    recipe=Recipe,
    loss=loss,
    task=SiameseLesionTask,
    datasets=("t1_lge",),
    needs=Needs(
        images=("t1", "lge"),
        masks={
            "t1_myocardium": MaskNeed("t1", _MYOCARDIUM),
            "lge_myocardium": MaskNeed("lge", _MYOCARDIUM),
            "lge_lesion": MaskNeed("lge", _LESION),
            "lge_reference": MaskNeed("lge", {"reference": Structure(("reference",))}),
        },
        train=Files(images=("t1", "lge"), labels=("t1_myocardium", "lge_myocardium")),
        predict=Files(images=("t1",), labels=("t1_myocardium",)),
    ),
    inputs=("t1", "lge"),
    objective=Objective("classification_loss", maximise=False),
    search={
        "lr": LogUniform(1e-5, 1e-2),
        "temperature": LogUniform(0.01, 1.0),
        "dropout_full": Uniform(0.0, 0.6),
    },
    structures={1: "lesion"},
    units="patches",
    published=PUBLISHED,
)
