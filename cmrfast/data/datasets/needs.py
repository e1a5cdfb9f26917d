"""Needs: what a method takes of a case, by the method's own names."""

from collections.abc import Mapping
from dataclasses import dataclass

from cmrfast.data.datasets.case import Case


@dataclass(frozen=True)
class Structure:
    """The labels that make up one structure.

    Args:
        names: what data sets call it; one of them must be there.
        plus: parts of it that some data sets draw apart: scar is myocardium.
    """

    names: tuple[str, ...]
    plus: tuple[str, ...] = ()


@dataclass(frozen=True)
class MaskNeed:
    """A mask of a method.

    Args:
        on: the sequence whose grid it lies on.
        structures: structure → its labels, what lies inside another after it. ``Case.label`` holds
            1 where the first structure is, 2 where the second is, and so on.
    """

    on: str
    structures: Mapping[str, Structure]


@dataclass(frozen=True)
class Files:
    """Sequences and masks by the method's names.

    Args:
        images, labels: those that a case must have.
        optional: masks that are used where a case has them.
    """

    images: tuple[str, ...]
    labels: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class Needs:
    """What a method takes of a case.

    Args:
        images: every sequence that it can use.
        masks: every mask that it can use, by name.
        train: what training takes.
        predict: what prediction takes.
    """

    images: tuple[str, ...]
    masks: Mapping[str, MaskNeed]
    train: Files
    predict: Files

    @property
    def structures(self) -> tuple[str, ...]:
        """The names of all structures."""
        return tuple(
            dict.fromkeys(name for need in self.masks.values() for name in need.structures)
        )

    def missing(self, case: Case, files: Files) -> list[str]:
        """What a case lacks of some files, such as ``LGE label (scar)``."""
        images = [f"{name} image" for name in files.images if name not in case.images]
        labels = [
            f"{name} label ({', '.join(self.masks[name].structures)})"
            for name in files.labels
            if name not in case.labels
        ]
        return images + labels


#: Ventricles and myocardium, in the order of their values in memory.
HEART: Mapping[str, Structure] = {
    "lv": Structure(("lv",)),
    "myocardium": Structure(("myocardium",), plus=("edema", "scar", "no_reflow")),
    "rv": Structure(("rv",)),
}
