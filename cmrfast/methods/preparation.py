"""Preparation of cases from declared files and fields, which also make up the cache key.

A preparation is handed the declared files and fields alone, and reading anything else raises. The
key is made here, from their contents and values and from the code of the method and of
``cmrfast.data``, so it cannot miss one of them.
"""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import cmrfast
from cmrfast.data.cache import Cache, Tensors
from cmrfast.data.datasets.case import Case
from cmrfast.errors import FileError
from cmrfast.models.recipe import Recipe

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ConfigT = TypeVar("ConfigT", bound="DataclassInstance")
RecipeT = TypeVar("RecipeT", bound=Recipe)
Prepared = TypeVar("Prepared")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source(Generic[ConfigT, RecipeT]):
    """What a case is prepared from.

    Args:
        case: its files.
        config: of the network.
        recipe: of the training.
        fitted: what the task's ``fit`` learned from the training patients.
        cache: keeps prepared cases; None prepares them each time.
    """

    case: Case
    config: ConfigT
    recipe: RecipeT
    fitted: Mapping[str, Any]
    cache: Cache | None = None


@dataclass(frozen=True)
class Preparation(Generic[ConfigT, RecipeT]):
    """One way to prepare a case, with everything that its result depends on.

    Args:
        name: of the method and, where it has several preparations, of this one.
        make: prepares a case; it sees the declared files and fields only.
        images, labels: files that the case must have.
        optional_labels: files that are used where the case has them.
        config, recipe, fitted: names of the fields and fitted facts that it reads.
    """

    name: str
    make: Callable[[Source[ConfigT, RecipeT]], Tensors]
    images: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    optional_labels: tuple[str, ...] = ()
    config: tuple[str, ...] = ()
    recipe: tuple[str, ...] = ()
    fitted: tuple[str, ...] = ()

    def __call__(self, source: Source[ConfigT, RecipeT]) -> Tensors:
        """The prepared case, from the cache if it holds it.

        Raises:
            FileError: a file is missing or cannot be used.
        """
        source.case.require(images=self.images, labels=self.labels)
        declared = self._restrict(source)
        if source.cache is None:
            return self.make(declared)
        case = declared.case
        files = [*case.images.values(), *case.labels.values()]
        return source.cache.tensors(files, self.options(declared), lambda: self.make(declared))

    def files(self, case: Case) -> list[str]:
        """The files that it may read, such as ``image LGE``."""
        labels = self._label_files(case)
        return [*(f"image {name}" for name in self.images), *(f"label {name}" for name in labels)]

    def options(self, source: Source[ConfigT, RecipeT]) -> dict[str, Any]:
        """The part of the cache key that is not the content of files."""
        case = source.case
        return {
            "preparation": self.name,
            "code": code_digest(Path(inspect.getfile(self.make)).parent),
            "images": [name for name in self.images if name in case.images],
            "labels": {key: asdict(case.labelling[key]) for key in self._label_files(case)},
            "config": {name: getattr(source.config, name) for name in self.config},
            "recipe": {name: getattr(source.recipe, name) for name in self.recipe},
            "fitted": {name: source.fitted[name] for name in self.fitted if name in source.fitted},
        }

    def _label_files(self, case: Case) -> dict[str, Path]:
        """The files of the masks that it reads and the case has, by their keys in ``labels``."""
        names = (*self.labels, *self.optional_labels)
        return {key: path for name in names for key, path in case.label_files(name).items()}

    def _restrict(self, source: Source[ConfigT, RecipeT]) -> Source[ConfigT, RecipeT]:
        case = source.case
        labels = self._label_files(case)
        return replace(
            source,
            case=replace(
                case,
                images={name: case.images[name] for name in self.images},
                labels=labels,
                labelling={name: case.labelling[name] for name in labels},
                info={},
                faults=(),
            ),
            config=cast(ConfigT, _Declared(self.name, "config", source.config, self.config)),
            recipe=cast(RecipeT, _Declared(self.name, "recipe", source.recipe, self.recipe)),
            fitted={name: source.fitted[name] for name in self.fitted if name in source.fitted},
        )


@cache
def code_digest(folder: Path) -> str:
    """Hash of the sources in a method's folder and of what prepares images in ``cmrfast.data``.

    A change of the code then makes other cache entries, as a change of a field does.
    """
    shared = Path(cmrfast.__file__).parent / "data"
    digest = blake2b(cmrfast.__version__.encode(), digest_size=20)
    for source in [*sorted(folder.glob("*.py")), *sorted(shared.rglob("*.py"))]:
        digest.update(source.read_bytes())
    return digest.hexdigest()


class _Declared:
    """Some fields of a Config or Recipe; reading any other raises."""

    def __init__(self, who: str, kind: str, values: object, names: Sequence[str]) -> None:
        self._who, self._kind = who, kind
        self._fields = {name: getattr(values, name) for name in names}

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("_fields", {})
        if name not in fields:
            raise AttributeError(
                f"{self._who}: preparation must declare the {self._kind} fields that it reads; "
                f"{name} is not among {', '.join(fields) or 'none'}"
            )
        return fields[name]


def prepare_cases(
    who: str, cases: Sequence[Case], prepare: Callable[[Case], Prepared]
) -> list[Prepared]:
    """Prepare each case; cases that cannot be used are left out and logged.

    Args:
        who: starts the messages.
        cases: to prepare.
        prepare: raises ``FileError`` where a case lacks something.

    Raises:
        FileError: no case is left; names why.
    """
    prepared, refused = [], []
    for case in cases:
        try:
            prepared.append(prepare(case))
        except FileError as error:
            refused.append(str(error))
            _log.warning("%s: %s is left out: %s", who, case.name, error)
    if not prepared:
        why = "; ".join(refused[:3]) or "there are no cases"
        more = f"; and {len(refused) - 3} more" if len(refused) > 3 else ""
        raise FileError(f"{who}: none of {len(cases)} cases can be used: {why}{more}")
    return prepared
