"""Part: the patients of one part of a split, with some of their sequences only."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload


@dataclass(frozen=True)
class Part(Sequence[str]):
    """Names of patients, and which of their sequences belong to the part.

    It can be used like a tuple of names. ``Dataset.subset`` leaves out all other images and masks
    of these patients.

    Args:
        sequences: name → sequences that are used with their masks.
        unlabelled: name → other sequences, of which only the images are used.

    Example:
        >>> part = Part({"patient1": ("C0", "LGE"), "patient6": ("C0",)}, {"patient6": ("LGE",)})
        >>> list(part), part[1:].unlabelled
        (['patient1', 'patient6'], {'patient6': ('LGE',)})
    """

    sequences: Mapping[str, tuple[str, ...]]
    unlabelled: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, sequences in [*self.sequences.items(), *self.unlabelled.items()]:
            if not sequences or len(set(sequences)) < len(sequences):
                raise ValueError(
                    f"Part: {name} must have one sequence or more, each once; "
                    f"got {', '.join(sequences) or 'none'}"
                )
        for name, sequences in self.unlabelled.items():
            if name not in self.sequences:
                raise ValueError(
                    f"Part: {name} must have sequences with masks besides the unlabelled ones"
                )
            if both := sorted({*sequences} & {*self.sequences[name]}):
                raise ValueError(
                    f"Part: a sequence is used with its mask or without; {name} has both of "
                    f"{', '.join(both)}"
                )
        # Their order means nothing, so parts that list them in another order are equal.
        object.__setattr__(self, "sequences", _sorted(self.sequences))
        object.__setattr__(self, "unlabelled", _sorted(self.unlabelled))

    def __len__(self) -> int:
        return len(self.sequences)

    def __iter__(self) -> Iterator[str]:
        return iter(self.sequences)

    def __contains__(self, name: object) -> bool:
        return name in self.sequences

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Part": ...
    def __getitem__(self, index: int | slice) -> "str | Part":
        names = list(self.sequences)
        if isinstance(index, int):
            return names[index]
        return Part(
            {name: self.sequences[name] for name in names[index]},
            {name: self.unlabelled[name] for name in names[index] if name in self.unlabelled},
        )


def _sorted(sequences: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(sorted(each)) for name, each in sequences.items()}
