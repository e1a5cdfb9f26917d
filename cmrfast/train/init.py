"""Weights that a training starts from: those of another run, or of a safetensors file."""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cmrfast.errors import CheckpointError, FileError
from cmrfast.files import file_digest, open_regular
from cmrfast.train.guard import all_finite
from cmrfast.train.run import Run

_SHOWN = 3  # names of each kind in a message


def read_weights(source: str | os.PathLike[str]) -> tuple[Mapping[str, Tensor], str]:
    """Weights by name, on the CPU, and a hash of the file that holds them.

    Args:
        source: folder of a run, whose checkpoint its recipe chooses, or a safetensors file with the
            names of ``state_dict``.

    Raises:
        FileError: the file cannot be read.
        CheckpointError: it is no run, or has no checkpoint.
    """
    path = Path(source)
    if path.is_dir():
        checkpoint = Run.open(path).checkpoint()
        return dict(checkpoint.state["model"]), checkpoint.digest
    try:
        open_regular(path).close()
        return load_file(path), file_digest(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileError(
            f"train: init must be the folder of a run or a safetensors file; {path}: {reason}"
        ) from error


def load_weights(
    model: nn.Module, weights: Mapping[str, Tensor], source: str | os.PathLike[str]
) -> None:
    """Copy weights into a network, which must have the same names and shapes.

    Args:
        model: the network; its dtype and device stay.
        weights: by the names of its ``state_dict``.
        source: of the weights, for messages.

    Raises:
        CheckpointError: a name or shape differs, or a value is not finite.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in weights]
    unknown = [name for name in weights if name not in own]
    reshaped = [
        f"{name} is {tuple(weights[name].shape)}, must be {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    kinds = {"missing": missing, "unknown": unknown, "of another shape": reshaped}
    faults = [f"{kind}: {_some(names)}" for kind, names in kinds.items() if names]
    if faults:
        raise CheckpointError(
            f"train: the weights of {source} do not fit the network; {'; '.join(faults)}"
        )
    if not all_finite(weights):
        raise CheckpointError(f"train: the weights of {source} hold NaN or infinite values")
    model.load_state_dict(weights)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
