"""joint_registration: LGE registered to cine by an affine map a slice, and both segmented."""

from cmrfast.data.datasets import Files, MaskNeed, Needs
from cmrfast.data.datasets.needs import HEART
from cmrfast.methods.joint_registration.images import Registration, register, warp_image
from cmrfast.methods.joint_registration.published import PUBLISHED
from cmrfast.methods.joint_registration.task import STRUCTURES, JointRegistrationTask
from cmrfast.methods.method import LogUniform, Method, Objective
from cmrfast.models.joint_registration import Config, JointRegistration, Recipe, loss

__all__ = ["METHOD", "Registration", "register", "warp_image"]

METHOD = Method(
    name="joint_registration",
    paper="Upendra, Simon, Linte 2021, Joint deep learning framework for image registration and "
    "segmentation of late gadolinium enhanced MRI and cine cardiac MRI",
    model=JointRegistration,
    config=Config,
    recipe=Recipe,
    loss=loss,
    task=JointRegistrationTask,
    datasets=("mscmrseg",),
    needs=Needs(
        images=("C0", "LGE"),
        masks={sequence: MaskNeed(sequence, HEART) for sequence in ("C0", "LGE")},
        train=Files(images=("C0", "LGE"), labels=("C0", "LGE")),
        predict=Files(images=("C0", "LGE")),
    ),
    inputs=("cine", "lge"),
    objective=Objective("registration_loss", maximise=False),
    search={
        "lr": LogUniform(1e-5, 1e-2),
        "registration_weight": LogUniform(0.1, 10),
    },
    structures={value: name for name, value in STRUCTURES.items()},
    units="pairs of slices",
    published=PUBLISHED,
)
