"""A case of any layout as one that a method reads: names matched, masks with its values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cmrfast.data.datasets.case import Case, Labelling
from cmrfast.data.datasets.names import plain, sequence_name, split_label, structure_name
from cmrfast.data.datasets.needs import MaskNeed, Needs, Structure

#: Structure → its values in the files, instead of those that the layout names.
Values = Mapping[str, tuple[int, ...]]


def match(case: Case, needs: Needs, values: Values | None = None) -> Case:
    """Find a method's sequences and masks among those of a case by name.

    Args:
        case: of any layout.
        needs: of the method.
        values: of structures, instead of what the layout says.

    Returns:
        The case with the method's names. Images that the method does not take keep their names.
    """
    values = values or {}
    unknown = sorted(values.keys() - set(needs.structures))
    if unknown:
        raise ValueError(
            f"labels: structures are {', '.join(needs.structures)}; got {', '.join(unknown)}"
        )
    sources = {name: key for name in needs.images if (key := _find_image(case, name)) is not None}
    images = {name: case.images[key] for name, key in sources.items()}
    taken = {*sources.values(), *images}
    images |= {key: path for key, path in case.images.items() if key not in taken}
    labels: dict[str, Path] = {}
    labelling: dict[str, Labelling] = {}
    for name, need in needs.masks.items():
        keys = [key for key in case.labelling if _serves(case, key, sources, need, needs)]
        parts = _find_parts(case, need, [name] if name in keys else keys, values)
        names = [name, *(f"{name}: {part.key}" for part in parts[1:])]
        for own, part in zip(names, parts, strict=False):
            labelling[own] = Labelling(
                on=need.on,
                ours=part.numbers,
                classes=_classes(need),
                on_all=case.labelling[part.key].on_all,
                others=case.labelling[part.key].others,
                drawn_over=tuple(names[1:]) if own == name else (),
            )
        if all(part.key in case.labels for part in parts):
            labels |= {own: case.labels[part.key] for own, part in zip(names, parts, strict=False)}
    return replace(case, images=images, labels=labels, labelling=labelling)


@dataclass(frozen=True)
class _Part:
    """One of the files that a mask is drawn from.

    Args:
        key: of the mask in the case.
        numbers: value in the file → number of a structure in the mask, from 1, or 0.
        structures: those of which it holds more than a part.
    """

    key: str
    numbers: Mapping[int, int]
    structures: frozenset[str]


def _find_image(case: Case, sequence: str) -> str | None:
    """The key of an image, by the method's name for it or by another."""
    exact = [key for key in case.images if plain(key) == plain(sequence)]
    same = [key for key in case.images if sequence_name(key) == sequence_name(sequence)]
    return next(iter(exact or same), None)


def _serves(case: Case, key: str, sources: Mapping[str, str], need: MaskNeed, needs: Needs) -> bool:
    """Whether a mask of the case lies on the image that a mask of the method is drawn on.

    One that names no image does unless the method has the same structure on another image too.
    """
    labelling = case.labelling[key]
    if labelling.on_all:
        return True
    if labelling.on:
        return labelling.on == sources.get(need.on)
    return all(
        other.on == need.on for other in needs.masks.values() if _names(other) & _names(need)
    )


def _names(need: MaskNeed) -> set[str]:
    return {name for structure in need.structures.values() for name in structure.names}


def _classes(need: MaskNeed) -> dict[str, tuple[int, ...]]:
    """Structure → numbers: its own, and those of structures that are part of it."""
    numbers = {structure: number for number, structure in enumerate(need.structures, start=1)}
    return {
        structure: (numbers[structure], *(numbers[part] for part in labels.plus if part in numbers))
        for structure, labels in need.structures.items()
    }


def _find_parts(case: Case, need: MaskNeed, keys: list[str], values: Values) -> list[_Part]:
    """The files that a mask is drawn from, in drawing order; none where a structure is missing."""
    found = [_read_part(key, case.labelling[key], need, values) for key in keys]
    if {name for part in found for name in part.structures} != need.structures.keys():
        return []
    used = [
        part
        for part in found
        if part.structures or (any(part.numbers.values()) and part.key in case.labels)
    ]
    return sorted(used, key=lambda part: max(part.numbers.values()))  # what lies inside last


def _read_part(key: str, labelling: Labelling, need: MaskNeed, values: Values) -> _Part:
    numbers = dict.fromkeys(labelling.ours, 0)
    structures = set()
    for number, (name, structure) in enumerate(need.structures.items(), start=1):
        if name in values:
            own = set(values[name]) if _may_hold(key, structure) else set()
            further = set()
        else:
            own = _stored_values(labelling, structure.names)
            # A part whose values are given is in the structure by its own number.
            further = _stored_values(labelling, [p for p in structure.plus if p not in values])
        if own:
            structures.add(name)
        for value in (*sorted(own), *sorted(further - own)):
            numbers.pop(value, None)  # of several values of a structure, its own comes first
            numbers[value] = number
    return _Part(key, numbers, frozenset(structures))


def _may_hold(key: str, structure: Structure) -> bool:
    """Whether values that a user gives apply: a mask named after one structure holds no other."""
    parts = split_label(key)
    return parts is None or parts[1] in ("", *structure.names)


def _stored_values(labelling: Labelling, names: Sequence[str]) -> set[int]:
    """The values in the file of the structures with some names."""
    ours = {
        value
        for name, members in labelling.classes.items()
        if structure_name(name) in names
        for value in members
    }
    return {theirs for theirs, value in labelling.ours.items() if value in ours}
