"""new_lesions: new MS lesions between two FLAIR volumes."""

from cmrfast.data.datasets import Files, MaskNeed, Needs, Structure
from cmrfast.methods.method import LogUniform, Method, Objective, Uniform
from cmrfast.methods.new_lesions.images import NewLesionMap, align, normalise, segment
from cmrfast.methods.new_lesions.task import NewLesionsTask
from cmrfast.models.new_lesions import Config, NewLesions, Recipe, loss

_CONSENSUS = Structure(("new_lesion", "lesion", "consensus"))
_RATERS = {f"rater{n}": Structure((f"rater{n}",)) for n in range(1, 5)}

__all__ = ["METHOD", "NewLesionMap", "align", "normalise", "segment"]

METHOD = Method(
    name="new_lesions",
    paper="Fenneteau et al. 2021, Siamese convolutional neural network for new multiple sclerosis "
    "lesion segmentation",
    model=NewLesions,
    config=Config,
    recipe=Recipe,
    loss=loss,
    task=NewLesionsTask,
    datasets=("msseg2", "open_ms"),
    needs=Needs(
        images=("earlier", "later"),
        masks={
            "consensus": MaskNeed("later", {"new_lesion": _CONSENSUS}),
            **{name: MaskNeed("later", {"new_lesion": own}) for name, own in _RATERS.items()},
            "brain": MaskNeed("later", {"brain": Structure(("brain",))}),
        },
        train=Files(images=("earlier", "later"), labels=("consensus",)),
        predict=Files(images=("earlier", "later"), optional=("brain",)),
    ),
    inputs=("earlier", "later"),
    objective=Objective("dice", maximise=True),
    search={
        "lr": LogUniform(1e-4, 1e-1),
        "dropout": Uniform(0.0, 0.6),
        "on_lesion": Uniform(0.2, 1.0),
    },
    structures={1: "new lesion"},
    overlaps={"dice": "new_lesions"},
)
