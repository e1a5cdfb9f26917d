"""Cohorts of phantoms, and cases that lack something."""

from dataclasses import replace

from cmrfast.data import open_dataset
from cmrfast.data.phantom import write_phantoms


def phantoms(method, folder, layout, **options):
    """Phantoms of a method, written into a folder and opened."""
    return open_dataset(layout, write_phantoms(method, folder, layout=layout, **options))


def without(case, *, images=(), labels=()):
    """The case without some of its files."""
    return replace(
        case,
        images={name: file for name, file in case.images.items() if name not in images},
        labels={name: file for name, file in case.labels.items() if name not in labels},
    )
