"""Proof: hashes of what a run computed, tensor by tensor, for ``verify`` to compare with."""

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from cmrfast.atomic import atomic_write
from cmrfast.errors import CheckpointError, FileError
from cmrfast.files import read_json
from cmrfast.methods import Prediction

_FILE = "proof.json"

#: Parts of a proof, in the order in which a run computes them.
BATCH, BEFORE, AFTER = "the first batch", "the first weights", "the weights after one step"
PREDICTION = "a prediction of "


class Proof:
    """The hashes of a run: part → name of a tensor → hash."""

    def __init__(self, parts: dict[str, dict[str, str]] | None = None) -> None:
        self.parts = parts or {}

    @classmethod
    def load(cls, folder: Path) -> "Proof":
        """Read a run's proof; empty where it has none.

        Raises:
            CheckpointError: it is damaged.
        """
        try:
            parts = read_json(folder / _FILE)
            for part, hashes in parts.items():
                if not isinstance(hashes, dict) or not all(
                    isinstance(text, str) for text in hashes.values()
                ):
                    raise ValueError(f"{part} must map names to hashes")
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError) as error:
            raise CheckpointError(f"verify: {folder / _FILE} is damaged: {error}") from error
        return cls(parts)

    def save(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        try:
            with atomic_write(folder / _FILE) as temporary:
                temporary.write_text(json.dumps(self.parts, indent=1) + "\n", "utf-8")
        except OSError as error:
            raise FileError(f"train: {folder / _FILE}: {error.strerror or error}") from error

    def add(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        """Hash a part's tensors."""
        self.parts[part] = {name: tensor_digest(tensor) for name, tensor in tensors.items()}

    def add_prediction(self, case: str, prediction: Prediction) -> None:
        """Hash a prediction: its images, their affine matrices and its facts."""
        volumes = {name: output.volume for name, output in prediction.images.items()}
        self.add(PREDICTION + case, {name: volume.data for name, volume in volumes.items()})
        facts = {
            **{name: volume.world_from_vox.tolist() for name, volume in volumes.items()},
            **prediction.facts,
        }
        text = json.dumps(facts, sort_keys=True)
        self.parts[PREDICTION + case]["facts"] = blake2b(text.encode(), digest_size=20).hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """Hash of a tensor's dtype, shape and values."""
    plain = tensor.detach().cpu().contiguous()
    digest = blake2b(f"{plain.dtype} {tuple(plain.shape)}".encode(), digest_size=20)
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
