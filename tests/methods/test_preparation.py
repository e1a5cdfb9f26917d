"""Preparation: what is declared is the cache key, and nothing else can be read."""

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, get_args, get_type_hints

import pytest
import torch

from cmrfast import methods
from cmrfast.data.cache import Cache
from cmrfast.data.datasets import Case, open_dataset
from cmrfast.data.phantom import write_phantoms
from cmrfast.errors import FileError
from cmrfast.methods import Preparation, Source
from cmrfast.methods import preparation as preparation_module
from cmrfast.methods.preparation import code_digest
from cmrfast.models import MODELS

PREPARATIONS = [
    pytest.param(name, preparation, id=preparation.name)
    for name in MODELS
    for preparation in methods.get(name).task.preparations
]
every_preparation = pytest.mark.parametrize(("name", "preparation"), PREPARATIONS)


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> dict[str, Case]:
    """A patient of each method's first data set."""
    found = {}
    for name in MODELS:
        layout = methods.get(name).datasets[0]
        root = tmp_path_factory.mktemp(name) / layout
        found[name] = next(
            iter(open_dataset(layout, write_phantoms(layout, root, cases=1, shrink=4)))
        )
    return found


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


def source_of(name: str, case: Case, cache: Cache | None = None) -> Source[Any, Any]:
    method = methods.get(name)
    fitted = {"landmarks": [float(p) for p in range(13)]} if name == "new_lesions" else {}
    quick = {"bias_field": False} if name == "new_lesions" else {}
    return Source(case, *method.configure(quick), fitted, cache)


class Counter:
    """Stands for a preparation's ``make`` and counts its calls."""

    def __init__(self, preparation: Preparation[Any, Any]) -> None:
        self.calls = 0
        self.preparation = replace(preparation, make=self._make)

    def _make(self, source: Source[Any, Any]) -> dict[str, torch.Tensor]:
        self.calls += 1
        return {"made": torch.tensor(self.calls)}

    def misses(self, source: Source[Any, Any]) -> bool:
        before = self.calls
        self.preparation(source)
        return self.calls > before


def another_value(values: Any, name: str) -> Any:
    """A value of a field that its dataclass accepts and that is not the present one."""
    value, options = getattr(values, name), get_args(get_type_hints(type(values))[name])
    if isinstance(value, str):
        return next(option for option in options if option != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (value[0] + 1, *value[1:])
    return value + 16


def changed_sources(
    source: Source[Any, Any], preparation: Preparation[Any, Any]
) -> Iterator[tuple[str, Source[Any, Any]]]:
    """Every source that differs in one declared field, fact or meaning of a label."""
    for side in ("config", "recipe"):
        values = getattr(source, side)
        for name in getattr(preparation, side):
            changed = replace(values, **{name: another_value(values, name)})
            yield f"{side}.{name}", replace(source, **{side: changed})
    for name in preparation.fitted:
        yield f"fitted.{name}", replace(source, fitted={**source.fitted, name: [1.0]})
    for name in preparation.labels:
        case = source.case
        labelling = replace(case.labelling[name], classes={"lv": (1, 2)})
        case = replace(case, labelling={**case.labelling, name: labelling})
        yield f"labelling of {name}", replace(source, case=case)


@every_preparation
def test_every_declared_field_is_part_of_the_key(name, preparation, cases, cache):
    source = source_of(name, cases[name], cache)
    counter = Counter(preparation)
    assert counter.misses(source)
    assert not counter.misses(source)
    for what, changed in changed_sources(source, preparation):
        assert counter.misses(changed), what
        assert not counter.misses(changed), what
    assert not counter.misses(source)


@every_preparation
def test_the_code_is_part_of_the_key(name, preparation, cases, cache, monkeypatch):
    source = source_of(name, cases[name], cache)
    counter = Counter(preparation)
    assert counter.misses(source)
    monkeypatch.setattr(preparation_module, "code_digest", lambda folder: "changed")
    assert counter.misses(source)


def test_every_source_of_a_method_counts(tmp_path):
    source = tmp_path / "images.py"
    source.write_text("SIDE = 3\n")
    before = code_digest(tmp_path)
    source.write_text("SIDE = 4\n")
    code_digest.cache_clear()
    assert code_digest(tmp_path) != before


@every_preparation
def test_every_declared_file_is_part_of_the_key(name, preparation, cases, cache, tmp_path):
    source = source_of(name, cases[name], cache)
    counter = Counter(preparation)
    assert counter.misses(source)
    case = source.case
    for kind, keys in {
        "images": preparation.images,
        "labels": (*preparation.labels, *preparation.optional_labels),
    }.items():
        files = getattr(case, kind)
        for key in set(keys) & set(files):
            copy = tmp_path / f"{kind}-{key}-{files[key].name}"
            copy.write_bytes(files[key].read_bytes())
            same = replace(source, case=replace(case, **{kind: {**files, key: copy}}))
            assert not counter.misses(same), "the content counts, not the name"
            copy.write_bytes(copy.read_bytes() + b"1")
            assert counter.misses(same), f"{kind}: {key}"
    for key in set(preparation.optional_labels) & set(case.labels):
        left = {name: path for name, path in case.labels.items() if name != key}
        assert counter.misses(replace(source, case=replace(case, labels=left))), key


@every_preparation
def test_a_field_that_is_read_must_be_declared(name, preparation, cases):
    source = source_of(name, cases[name])
    for side in ("config", "recipe"):
        declared = getattr(preparation, side)
        for field in declared:
            left = replace(preparation, **{side: tuple(f for f in declared if f != field)})
            with pytest.raises(AttributeError, match=f"must declare the {side} fields .* {field} "):
                left(source)


@every_preparation
def test_a_file_that_is_read_must_be_declared(name, preparation, cases):
    source = source_of(name, cases[name])
    for kind in ("images", "labels"):
        for key in getattr(preparation, kind):
            left = tuple(k for k in getattr(preparation, kind) if k != key)
            with pytest.raises((FileError, KeyError, ValueError)):
                replace(preparation, **{kind: left})(source)


@every_preparation
def test_undeclared_fields_files_and_facts_are_not_there(name, preparation, cases):
    seen = []

    def look(source: Source[Any, Any]) -> dict[str, torch.Tensor]:
        seen.append(source)
        return {}

    source = source_of(name, cases[name])
    replace(preparation, make=look)(source)
    (given,) = seen
    assert set(given.case.images) == set(preparation.images)
    assert set(given.case.labels) <= {*preparation.labels, *preparation.optional_labels}
    assert set(given.case.labelling) == set(given.case.labels)
    assert not given.case.info
    assert not given.case.faults
    assert set(given.fitted) <= set(preparation.fitted)
    for side in ("config", "recipe"):
        for field in fields(getattr(source, side)):
            if field.name in getattr(preparation, side):
                assert getattr(getattr(given, side), field.name) == getattr(
                    getattr(source, side), field.name
                )
            else:
                with pytest.raises(AttributeError, match=f"{field.name} is not among"):
                    getattr(getattr(given, side), field.name)


@every_preparation
def test_a_missing_file_is_named(name, preparation, cases):
    source = source_of(name, cases[name])
    case = replace(source.case, images={})
    with pytest.raises(
        FileError, match=rf"image: {case.name} has no {preparation.images[0]} image"
    ):
        preparation(replace(source, case=case))


def test_every_method_declares_what_it_prepares():
    for name in MODELS:
        names = [preparation.name for preparation in methods.get(name).task.preparations]
        assert names
        assert len(names) == len(set(names))
        assert all(text.startswith(name) for text in names)
