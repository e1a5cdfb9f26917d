"""Fast, exact building blocks for deep learning on cardiac MR and MS-lesion images."""

from cmrfast.errors import CheckpointError, FileError

__version__ = "0.1.0"
__all__ = ["CheckpointError", "FileError", "__version__"]
