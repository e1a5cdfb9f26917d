"""Where nnU-Net finds ``CmrfastTrainer``; it imports this file from outside of the package."""

from cmrfast.compat.nnunet.trainer import CmrfastTrainer

__all__ = ["CmrfastTrainer"]
