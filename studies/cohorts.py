"""The patients of a study: phantoms drawn for each seed, or a data set of one's own."""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cmrfast import methods
from cmrfast.data.datasets import Split, open_dataset
from cmrfast.data.phantom import write_phantoms
from cmrfast.train.plan import choose_split
from studies.design import Arm, Names, Scale, Study

PILOT_PATIENTS = 10
_PILOT_SEED = 1  # of phantoms; those of the study have seed 0


@dataclass(frozen=True)
class Cohorts:
    """Who trains, validates and is tested, for each arm and seed.

    Args:
        study: with its arms.
        scale: of the study.
        folder: for phantoms.
        own: root of a data set of one's own; None for phantoms.
    """

    study: Study
    scale: Scale
    folder: Path
    own: Path | None = None

    def __post_init__(self) -> None:
        """Refuse a data set of one's own where arms differ in their phantoms."""
        if self.own and any(arm.phantom for arm in self.study.arms.values()):
            raise SystemExit(f"{self.study.experiment} compares phantoms; leave --data out")

    @property
    def layout(self) -> str:
        """The layout of the images."""
        return self._choose()[0] if self.own else self._phantom_layout

    @property
    def resplit(self) -> bool:
        """Whether each repeat of the experiment splits the same patients again."""
        return self.own is not None and self.scale.repeats

    @property
    def text(self) -> str:
        """A description of the images."""
        return f"{self.layout}, {self.own.name if self.own else 'phantoms'}"

    def prepare(self, log: Callable[[str], None]) -> None:
        """Write the phantoms that are not there yet."""
        if self.own:
            return
        train, validate, test = self.scale.patients
        tested = self.scale.seeds * test if self.scale.repeats else test
        count = self.scale.seeds * (train + validate) + tested
        for arm in self.study.arms.values():
            for root, seed, cases in (
                (self.root(arm), 0, count),
                (self.pilot(arm), _PILOT_SEED, PILOT_PATIENTS),
            ):
                self._write(arm, root, seed, cases, log)

    def root(self, arm: Arm) -> Path:
        """Folder of the images of an arm."""
        if self.own:
            return self.own
        return self.folder / "-".join(["phantoms", *(f"{k}-{v}" for k, v in arm.phantom.items())])

    def pilot(self, arm: Arm) -> Path:
        """Folder of further phantoms, on which the power is estimated."""
        return self.root(arm).with_name(f"pilot-{self.root(arm).name}")

    def split(self, arm: Arm, seed: int) -> Split:
        """Who trains, validates and is tested."""
        if self.own:
            split = self._choose(seed if self.resplit else 0)[1]
            names = [tuple(part) for part in (split.train, split.validate, split.test)]
            split = arm.split(*names) if arm.split else split
        else:
            split = (arm.split or self.study.split)(*self._drawn(arm, seed))
        return _fewer(split, arm) if arm.patients < 1 else split

    def _drawn(self, arm: Arm, seed: int) -> tuple[Names, Names, Names]:
        """Names of the phantoms that a seed trains, validates and tests on."""
        names = open_dataset(self._phantom_layout, self.root(arm)).names
        ordered = sorted(names, key=lambda name: int(re.findall(r"\d+", name)[-1]))
        train, validate, test = self.scale.patients
        own = train + validate + test if self.scale.repeats else train + validate
        shared = 0 if self.scale.repeats else test
        rest = iter(ordered[shared + seed * own :])
        trained, validated = (tuple(islice(rest, count)) for count in (train, validate))
        return trained, validated, tuple(ordered[:shared] or islice(rest, test))

    def _choose(self, seed: int = 0) -> tuple[str, Split]:
        """Layout and split of a data set of one's own."""
        assert self.own is not None
        method = methods.get(self.study.method)
        share = {"split": self.study.own_share} if self.study.own_share else {}
        recipe = method.configure({**self.scale.changes, **share})[1]
        layout, split = choose_split(method, self.own, recipe, seed)
        if self.study.own_split:
            split = self.study.own_split(open_dataset(layout, self.own).names)
        return layout, split

    @property
    def _phantom_layout(self) -> str:
        return methods.get(self.study.method).datasets[0]

    def _write(
        self, arm: Arm, root: Path, seed: int, cases: int, log: Callable[[str], None]
    ) -> None:
        done = root.with_name(f"{root.name}.done")
        if done.exists():
            return
        log(f"writing {cases} phantoms, {root.name}")
        shutil.rmtree(root, ignore_errors=True)
        write_phantoms(
            self._phantom_layout,
            root,
            cases=cases,
            seed=seed,
            shrink=self.scale.shrink,
            **arm.phantom,
        )
        done.touch()


def _fewer(split: Split, arm: Arm) -> Split:
    """The split of an arm that trains on a part of the training patients."""
    train = tuple(split.train)
    kept = max(1, round(arm.patients * len(train)))
    others = train[kept:] if arm.others_validate else ()
    return Split(train[:kept], (*split.validate, *others), split.test)
