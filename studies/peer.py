"""What another program reached on a study's test patients, in the study's own scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cmrfast import methods
from cmrfast.data import Volume
from cmrfast.data.datasets import Case, Labelling
from cmrfast.methods.adversarial_transfer.task import AdversarialTransferTask
from cmrfast.methods.joint_scar.task import JointScarTask
from cmrfast.methods.new_lesions.images import NewLesionMap
from cmrfast.methods.new_lesions.task import NewLesionsTask
from cmrfast.methods.task import Task
from cmrfast.runs.evaluate import Evaluation
from studies import comparisons
from studies.design import Study


@dataclass(frozen=True)
class Peer:
    """What another program reached on the test patients.

    Args:
        name: of the program and what it was given.
        version: of the program.
        seconds: duration of all it did, reading and writing included.
        evaluation: its scores, in the rows of the study's method.
        note: how it was run.
    """

    name: str
    version: str
    seconds: float
    evaluation: Evaluation
    note: str

    def as_json(self, study: Study) -> dict[str, Any]:
        """The entry of the result file: means as an arm's, and each patient's measurements."""
        summary = self.evaluation.summary()
        measured = comparisons.measure(study, {self.name: [self.evaluation]})[self.name]
        return {
            "name": self.name,
            "version": self.version,
            "seconds": self.seconds,
            "scores": {s: summary[s].mean for s in study.scores if s in summary},
            "measurements": measured,
            "patients": len({row.ids["case"] for row in self.evaluation.rows}),
            "note": self.note,
        }


class _GivenScar(JointScarTask):
    """Scores masks that another program drew, in place of a model's."""

    def _segment(self, model: Any, image: Volume) -> dict[str, Volume]:
        names = {"myocardium": (1, 2), "scar": (2,)}
        labelling = Labelling("LGE", {}, names)
        return {name: image.with_data(labelling.mask(model, name).data.byte()) for name in names}


class _GivenLesions(NewLesionsTask):
    """Scores masks that another program drew, in place of a model's."""

    def _segment(self, model: Any, case: Case) -> NewLesionMap:
        return NewLesionMap(mask=model, probability=model)


class _GivenHeart(AdversarialTransferTask):
    """Scores labels that another program drew, in place of a model's."""

    def _segment(self, model: Any, image: Volume) -> Volume:
        labels: Volume = model
        return labels


_TASKS: dict[str, Callable[..., Task[Any, Any, Any]]] = {
    "joint_scar": _GivenScar,
    "new_lesions": _GivenLesions,
    "adversarial_transfer": _GivenHeart,
}


def score(
    name: str, test: Sequence[Case], labels: Mapping[str, Volume], **changes: Any
) -> Evaluation:
    """Score label volumes as the study's method scores its own masks.

    Args:
        name: the method.
        test: patients with reference labels.
        labels: of each patient, on the grid that the reference has: joint_scar 1 myocardium without
            scar, 2 scar; new_lesions 1; adversarial_transfer 1 left ventricle, 2 myocardium, 3
            right ventricle.
        changes: changed fields of the method, which may change how it scores.
    """
    task = _TASKS[name](*methods.get(name).configure(changes))
    rows = [row for case in test for row in task.evaluate(labels[case.name], case)]
    return Evaluation(name, "test", rows, {})
