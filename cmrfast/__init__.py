"""Fast, exact building blocks for deep learning on cardiac MR and MS-lesion images."""

__version__ = "0.1.0"
__all__ = ["__version__"]
