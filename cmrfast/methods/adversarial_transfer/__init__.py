"""adversarial_transfer: LGE segmentation against an adversary, with masks of bSSFP and T2."""

from cmrfast.data.datasets import Files, MaskNeed, Needs
from cmrfast.data.datasets.needs import HEART
from cmrfast.methods.adversarial_transfer.images import STRUCTURES, Segmentation, segment
from cmrfast.methods.adversarial_transfer.protocols import PROTOCOLS, protocol_split
from cmrfast.methods.adversarial_transfer.published import PUBLISHED
from cmrfast.methods.adversarial_transfer.recipes import RECIPES
from cmrfast.methods.adversarial_transfer.task import OVERLAPS, AdversarialTransferTask
from cmrfast.methods.method import LogUniform, Method, Objective, Uniform
from cmrfast.models.adversarial_transfer import AdversarialTransfer, Config, Recipe, loss, step

__all__ = ["METHOD", "PROTOCOLS", "Segmentation", "protocol_split", "segment"]

METHOD = Method(
    name="adversarial_transfer",
    paper="Chen, Li, Zhang, Menze 2020, Adversarial convolutional networks with weak "
    "domain-transfer for multi-sequence cardiac MR images segmentation",
    model=AdversarialTransfer,
    config=Config,
    recipe=Recipe,
    loss=loss,
    step=step,
    task=AdversarialTransferTask,
    datasets=("mscmrseg",),
    needs=Needs(
        images=("LGE", "C0", "T2"),
        masks={sequence: MaskNeed(sequence, HEART) for sequence in ("LGE", "C0", "T2")},
        train=Files(images=("LGE",), labels=("LGE",)),
        predict=Files(images=("LGE",)),
    ),
    inputs=("images",),
    objective=Objective("dice_percent", maximise=True),
    search={
        "lr": LogUniform(1e-5, 1e-2),
        "individual_weight": Uniform(0.5, 1.0),
        "adversarial_weight": LogUniform(0.01, 10),
    },
    structures={value: name for name, value in STRUCTURES.items()},
    overlaps=OVERLAPS,
    published=PUBLISHED,
    recipes=RECIPES,
)
