"""Verification: a run's first step and a prediction done again, compared bit by bit."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from cmrfast.errors import CheckpointError
from cmrfast.train.conditions import threads
from cmrfast.train.plan import TrainOptions
from cmrfast.train.proof import PREDICTION, Proof
from cmrfast.train.ranks import Ranks, process_group
from cmrfast.train.run import Run
from cmrfast.train.trainer import Trainer


@dataclass(frozen=True)
class Verification:
    """What a run's repetition found.

    Args:
        conditions: how this machine differs from the one where the run began, in words.
        parts: what was repeated, in order; with the names of the tensors that differ.
    """

    conditions: tuple[str, ...]
    parts: dict[str, tuple[str, ...]]

    @property
    def same(self) -> bool:
        """Whether all bits are the same."""
        return not any(self.parts.values())

    def __str__(self) -> str:
        lines = ["files: the same"]
        for part, differing in self.parts.items():
            if differing:
                more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
                lines.append(f"{part}: different bits, first in {differing[0]}{more}")
            else:
                lines.append(f"{part}: same bits")
        lines += [f"this machine: {difference}" for difference in self.conditions]
        return "\n".join(lines)


def verify(
    run: Run, data: str | os.PathLike[str] | None = None, *, device: str | None = None
) -> Verification:
    """Repeat a run's preparation, first step and one prediction; compare hashes with the run's.

    It works under the number of threads that the run began under. Nothing is written.

    Args:
        run: a finished training.
        data: root of the data set; default where it was in training.
        device: cpu or cuda; default the kind that the run was trained on.

    Raises:
        CheckpointError: the run has no hashes, or did not finish.
        FileError: a file is missing or is not the one that the run began with.
    """
    proof, conditions = Proof.load(run.path), run.conditions
    if conditions is None or not any(part.startswith(PREDICTION) for part in proof.parts):
        raise CheckpointError(
            f"verify: {run.path} has nothing to compare with: it did not finish, or it is of a "
            "version that stored no hashes"
        )
    device = device or ("cpu" if conditions.device == "cpu" else "cuda")
    with process_group(device) as ranks, threads(conditions.threads):
        if ranks.count != conditions.ranks:
            raise CheckpointError(
                f"verify: {run.path} was trained by {conditions.ranks} ranks; got {ranks.count}, "
                "which divide the work in other ways"
            )
        trainer = _trainer(run, data or run.data, device, ranks)
        trainer.proof = Proof()
        trainer.prove_first_step()
        if ranks.first:
            trainer.prove_prediction()
        found: dict[str, dict[str, str]] = ranks.broadcast(trainer.proof.parts)
    parts = {
        part: tuple(_differing(stored, found.get(part, {}))) for part, stored in proof.parts.items()
    }
    return Verification(tuple(trainer.changed_conditions), parts)


def _trainer(run: Run, data: str | os.PathLike[str], device: str, ranks: Ranks) -> Trainer:
    """A trainer with the run's plan and options; to make one writes nothing."""
    options = TrainOptions.of({**run.options, "device": device, "resume": True})
    return Trainer(run.method, data, run.path, run.changes, options, ranks)


def _differing(stored: dict[str, str], now: dict[str, str]) -> Iterator[str]:
    yield from (name for name in {**stored, **now} if stored.get(name) != now.get(name))
