"""What a reader has to know before the scores of a run: who was scored, and how it trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cmrfast.data.datasets.case import Case
from cmrfast.data.phantom.marker import is_synthetic
from cmrfast.errors import CheckpointError, FileError
from cmrfast.files import path_digest
from cmrfast.methods import Row
from cmrfast.train.log import read_log
from cmrfast.train.run import Run

#: Fewer patients than this say little, however many slices they have.
_FEW_PATIENTS = 10
#: A network that has seen less than this part of its recipe's epochs is called hardly trained.
_HARDLY = 0.1
_MOST_NAMES = 5


def notes_on(
    run: Run,
    part: str,
    cases: Sequence[Case],
    rows: Sequence[Row],
    failed: Mapping[str, str] | None = None,
) -> list[str]:
    """Sentences that go with every table of these scores, the gravest first.

    Args:
        run: whose network was scored.
        part: of its split, or all.
        cases: that were to be scored.
        rows: of those that have labels.
        failed: those that could not be scored, and why.
    """
    failed, names = failed or {}, {row.case for row in rows}
    scored = [case for case in cases if case.name in names]
    found = [_synthetic(cases), _known(run, part, scored), _failed(cases, failed)]
    found += [_hardly_trained(run), _few(rows)]
    found.append(_unlabelled([case for case in cases if case.name not in failed], rows))
    found.append(_also_trained(run) if part == "test" else None)
    found.append(_trained_before(run, scored))
    return [note for note in found if note]


def _synthetic(cases: Sequence[Case]) -> str | None:
    if not any(is_synthetic(path) for case in cases for path in case.images.values()):
        return None
    return "The patients are synthetic: these scores say nothing about real ones."


def _trained(run: Run, cases: Sequence[Case]) -> list[Case]:
    """The cases that trained a run: those with an image that is one of a training patient's.

    It is known by its path or, copied or renamed, by its bytes; never by the name of the case,
    which another data set may use too.
    """
    train = set(run.plan.split.train)
    digests = {
        digest
        for name in train
        for file, digest in run.inputs.get(name, {}).items()
        if file.startswith("image ") and digest
    }
    try:
        known = [case for case in run.open_cases(run.data) if case.name in train]
    except FileError:  # no longer there
        known = []
    paths = {path.resolve() for case in known for path in case.images.values()}

    def is_known(path: Path) -> bool:
        return path.resolve() in paths or (bool(digests) and path_digest(path) in digests)

    return [case for case in cases if any(map(is_known, case.images.values()))]


def _known(run: Run, part: str, scored: Sequence[Case]) -> str | None:
    """Scored patients whom the network was trained on."""
    if part not in ("train", "all"):
        return None
    both = _trained(run, scored)
    if not both:
        return None
    return (
        f"{len(both)} of {len(scored)} scored patients trained the network: their scores say "
        "nothing about others."
    )


def _failed(cases: Sequence[Case], failed: Mapping[str, str]) -> str | None:
    if not failed:
        return None
    reasons = [f"{name}: {reason}" for name, reason in failed.items()]
    more = "; …" if len(reasons) > _MOST_NAMES else ""
    return (
        f"{len(failed)} of {len(cases)} patients could not be scored: "
        f"{'; '.join(reasons[:_MOST_NAMES])}{more}."
    )


def _hardly_trained(run: Run) -> str | None:
    epochs = [record["epoch"] for record in read_log(run.path / "log.jsonl") if "epoch" in record]
    published = run.method.recipe().epochs
    if not epochs or epochs[-1] + 1 >= _HARDLY * published:
        return None
    return (
        f"The network is hardly trained: it stopped in epoch {epochs[-1] + 1} "
        f"of the recipe's {published}."
    )


def _few(rows: Sequence[Row]) -> str | None:
    count = len({row.case for row in rows})
    if count >= _FEW_PATIENTS:
        return None
    words = {0: "No patient is", 1: "Only 1 patient is"}.get(count, f"Only {count} patients are")
    return f"{words} scored: fewer than {_FEW_PATIENTS} say little about others."


def _unlabelled(cases: Sequence[Case], rows: Sequence[Row]) -> str | None:
    scored = {row.case for row in rows}
    missing = [case.name for case in cases if case.name not in scored]
    if not missing:
        return None
    count = f"{len(missing)} of {len(cases)}"
    return f"Without the labels to be scored: {count} patients ({_some(missing)})."


def _also_trained(run: Run) -> str | None:
    both = run.plan.split.tested_unlabelled
    if not both:
        return None
    sequences = ", ".join(sorted({name for names in both.values() for name in names}))
    return (
        f"{sequences} of {len(both)} tested patients trained as well, without masks: "
        "these are not scores of patients whom the network has never seen."
    )


def _trained_before(run: Run, scored: Sequence[Case]) -> str | None:
    """Patients whom the run that the weights come from was trained on."""
    if run.plan.init is None:
        return None
    try:
        before = Run.open(run.plan.init)
    except CheckpointError:  # a file, or no longer there
        return f"The weights come from {run.plan.init}; whom it was trained on is not known here."
    known = _trained(before, scored)
    ours = {case.name for case in _trained(run, known)}
    both = sorted({case.name for case in known} - ours)
    if not both:
        return None
    return (
        f"{len(both)} of the scored patients ({_some(both)}) trained {run.plan.init}, whose "
        "weights this network started from."
    )


def _some(names: Sequence[str]) -> str:
    """The first names."""
    return ", ".join(names[:_MOST_NAMES]) + (", …" if len(names) > _MOST_NAMES else "")
