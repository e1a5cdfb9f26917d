"""A trainer of nnU-Net (2.8 or later) whose data, loss and export run on the ops of this package.

nnU-Net finds it where ``nnUNet_extTrainer`` points::

    export nnUNet_extTrainer=$(python -m cmrfast.compat.nnunet)
    nnUNetv2_train DATASET 3d_fullres 0 -tr CmrfastTrainer

``compat.nnunet.trainer`` holds the trainer and needs nnU-Net; the parts below do not.
"""

from cmrfast.compat.nnunet.augmentation import Augmentation, Drawn
from cmrfast.compat.nnunet.loading import Patches, PatchLoader
from cmrfast.compat.nnunet.loss import SegmentationLoss
from cmrfast.compat.nnunet.resampling import resample_labels
from cmrfast.compat.nnunet.targets import Targets

__all__ = [
    "Augmentation",
    "Drawn",
    "PatchLoader",
    "Patches",
    "SegmentationLoss",
    "Targets",
    "resample_labels",
]
