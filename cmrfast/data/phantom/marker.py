"""The file by which a folder of synthetic patients is recognised."""

from pathlib import Path

_NAME = "SYNTHETIC.txt"
_TEXT = """These patients are synthetic: cmrfast phantom made them.
Scores on them show whether code works. They say nothing about real patients.
"""


def mark_synthetic(root: Path) -> None:
    """Write the file into the root of a data set."""
    (root / _NAME).write_text(_TEXT, "utf-8")


def is_synthetic(image: Path) -> bool:
    """Whether an image is in a folder that was marked, however deep."""
    return any((folder / _NAME).is_file() for folder in image.resolve().parents)
