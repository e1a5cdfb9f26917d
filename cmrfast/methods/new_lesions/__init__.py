"""new_lesions: new MS lesions between two FLAIR volumes."""

from cmrfast.methods.method import LogUniform, Method, Objective, Uniform
from cmrfast.methods.new_lesions.images import NewLesionMap, align, normalise, segment
from cmrfast.methods.new_lesions.task import NewLesionsTask
from cmrfast.models.new_lesions import Config, NewLesions, Recipe, loss

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
