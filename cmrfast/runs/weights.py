"""Small networks that come with the package, so that a prediction takes seconds."""

import os
import shutil
from pathlib import Path

from cmrfast.errors import FileError
from cmrfast.models import MODELS
from cmrfast.models._check import require_option
from cmrfast.train import Run

#: A run of each method that has one, without optimiser and log, and its card.
FOLDER = Path(__file__).with_name("weights")
WITH_WEIGHTS = ("adversarial_transfer", "joint_registration", "joint_scar", "new_lesions")


def demo_weights(method: str, out: str | os.PathLike[str]) -> Run:
    """Copy the demonstration run of a method into a new folder.

    Its network was trained on synthetic patients only, as its ``card.md`` says: it shows what
    ``predict``, ``view`` and ``report`` do, and is of no use on patients.

    Args:
        method: one of ``WITH_WEIGHTS``.
        out: the new folder.

    Returns:
        The run in ``out``.

    Raises:
        FileError: ``out`` exists, or cannot be written.
    """
    require_option("demo_weights", "method", method, list(MODELS))
    if method not in WITH_WEIGHTS:
        raise ValueError(
            f"demo_weights: there are no demonstration weights for {method}; there are for "
            f"{', '.join(WITH_WEIGHTS)}"
        )
    target = Path(out)
    unfinished = target.with_name(f"{target.name}.unfinished")
    try:
        if target.exists():
            raise FileError(f"demo_weights: {target} exists; name a new folder")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(FOLDER / method, unfinished)
        unfinished.rename(target)
    except OSError as error:
        raise FileError(f"demo_weights: {target}: {error.strerror or error}") from error
    return Run.open(target)
