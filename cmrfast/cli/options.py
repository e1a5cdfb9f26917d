"""Options that several commands share, and how they are parsed."""

import re
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from cmrfast.errors import did_you_mean
from cmrfast.models import MODELS

if TYPE_CHECKING:
    from cmrfast.methods.method import Range

#: Options by name, as ``train`` takes them, whose values the run to resume has.
_RESUMED = (
    *("steps", "seed", "init", "micro_batch", "precision", "compiled", "channels_last"),
    "sharded",
)

Method = Annotated[str, typer.Argument(metavar="METHOD", help=f"One of {', '.join(MODELS)}.")]
Folder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training run.")]
Data = Annotated[Path, typer.Option(help="Root of a data set that the method reads.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1 …")]
Split = Annotated[str, typer.Option(help="train, validate, test or all.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="A config or recipe field; repeatable."),
]
Patients = Annotated[
    Path | None,
    typer.Option(help="JSON file: patients, or sequences of them, to train, validate and test on."),
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--labels",
        metavar="STRUCTURE=VALUES",
        help="Values of a structure in the masks, such as scar=3,4; repeatable.",
    ),
]
Init = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN|FILE",
        help="Start from the weights of a run, or of a safetensors file with the same names.",
    ),
]
NamedRecipe = Annotated[str, typer.Option("--recipe", help="A named recipe of the method.")]


class Precision(StrEnum):
    """Arithmetic of a network in training."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Compiled(StrEnum):
    """How a network is compiled."""

    no = "no"
    default = "default"
    graphs = "graphs"


class Track(StrEnum):
    """Where losses go besides the log."""

    tensorboard = "tensorboard"
    mlflow = "mlflow"
    wandb = "wandb"


class Like(StrEnum):
    """How predictions are written."""

    folders = "folders"
    nnunet = "nnunet"
    bids = "bids"
    dicom_seg = "dicom-seg"


def known_method(name: str) -> str:
    """A method's name."""
    if name not in MODELS:
        raise typer.BadParameter(
            f"METHOD must be one of {', '.join(MODELS)}; got {name!r}{did_you_mean(name, MODELS)}"
        )
    return name


def known_device(name: str) -> str:
    """The name of a device, whether or not this machine has it."""
    from cmrfast.train.ranks import require_device

    try:
        require_device(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return name


def positive(name: str, value: int | None) -> int | None:
    """A number that has to be at least 1, where it was given."""
    if value is not None and value < 1:
        raise typer.BadParameter(f"--{name} must be at least 1; got {value}")
    return value


def whole(text: str) -> int | None:
    """A whole number, or None for auto."""
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise typer.BadParameter(f"must be auto or a whole number; got {text}") from None


def without_defaults(context: typer.Context, options: dict[str, Any]) -> dict[str, Any]:
    """Options as ``train`` takes them, without those of a run to resume that were not given."""
    sources = {name: context.get_parameter_source(name) for name in _RESUMED}
    left_out = {name for name, source in sources.items() if source and source.name == "DEFAULT"}
    return {name: value for name, value in options.items() if name not in left_out}


def changes_of(
    context: typer.Context, method: str, recipe: str, pairs: list[str]
) -> dict[str, Any]:
    """Fields of a named recipe, from ``--set field=value`` and from ``--field value``."""
    from cmrfast import methods

    record = methods.get(method)
    recipes, extra = record.recipes, context.args
    if recipe not in recipes:
        raise typer.BadParameter(
            f"--recipe must be one of {', '.join(recipes)}; got {recipe!r}"
            f"{did_you_mean(recipe, recipes)}"
        )
    for pair in pairs:
        if "=" not in pair:
            raise typer.BadParameter(f"--set must be FIELD=VALUE; got {pair}")
    others, given = _options_in([*(f"--{pair}" for pair in pairs), *extra], "a value")
    if others:
        raise typer.BadParameter(f"options come as --field value; got {' '.join(others)}")
    hints = get_type_hints(record.config) | get_type_hints(record.recipe)
    changes = dict(recipes[recipe])
    changes |= {name: _value(text, hints.get(name)) for name, text in given}
    known = [f.name for values in (record.config(), record.recipe()) for f in fields(values)]
    for name in changes:
        if name not in known:
            options = [option for each in context.command.params for option in each.opts]
            options += ["--" + field.replace("_", "-") for field in known]
            option = "--" + name.replace("_", "-")
            raise typer.BadParameter(
                f"{option} is neither an option nor a field of {method}"
                f"{did_you_mean(option, options)} "
                f"cmrfast {context.info_name} {method} --help lists all"
            )
    try:
        record.configure(changes)
    except (ValueError, TypeError) as error:
        raise typer.BadParameter(str(error)) from None
    return changes


def _value(text: str, hint: Any) -> Any:
    """A number, a boolean, a tuple such as 1,2,3, or the text itself, as for a field of text."""
    if str in (hint, *get_args(hint)) and text.lower() != "none":
        return text
    if "," in text:
        return tuple(_value(part, None) for part in text.strip("()").split(",") if part)
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def values_of(texts: list[str] | None) -> dict[str, tuple[int, ...]] | None:
    """Structure → values, from ``scar=3,4``; None where there are none."""
    values = {}
    for text in (word for item in texts or [] for word in item.split()):
        name, _, numbers = text.partition("=")
        if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", numbers, re.ASCII) or not name:
            raise typer.BadParameter(f"--labels must be STRUCTURE=VALUE,VALUE; got {text}")
        values[name.replace("-", "_")] = tuple(map(int, numbers.split(",")))
    return values or None


def files_of(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Words, and the files among them that come as ``--name FILE`` or ``--name=FILE``."""
    others, files = _options_in(words, "a file")
    return others, dict(files)


def _options_in(words: list[str], what: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Words, and names and values of those that come as ``--name VALUE`` or ``--name=VALUE``."""
    others: list[str] = []
    options: list[tuple[str, str]] = []
    rest = iter(words)
    for word in rest:
        if not word.startswith("--"):
            others.append(word)
            continue
        name, has_value, value = word[2:].partition("=")
        if not has_value:
            value = next(rest, "")
        if not value or value.startswith("--"):
            raise typer.BadParameter(f"{word} must be followed by {what}")
        options.append((name.replace("-", "_"), value))
    return others, options


def known_split(name: str) -> str:
    """One of the parts of a split, or all."""
    if name not in ("train", "validate", "test", "all"):
        raise typer.BadParameter(f"--split must be train, validate, test or all; got {name}")
    return name


def ranges_of(texts: list[str]) -> "dict[str, Range] | None":
    """``field=low:high`` or ``field=low:high:log``."""
    from cmrfast.methods import LogUniform, Uniform

    ranges: dict[str, Range] = {}
    for text in texts:
        name, _, numbers = text.partition("=")
        bounds = numbers.split(":")
        kind: type[Range] = Uniform
        if len(bounds) == 3 and bounds[2] in ("", "log"):
            kind = LogUniform if bounds.pop() == "log" else Uniform
        try:
            low, high = map(float, bounds)
            ranges[name.replace("-", "_")] = kind(low, high)
        except ValueError:
            raise typer.BadParameter(
                f"--range must be FIELD=LOW:HIGH or FIELD=LOW:HIGH:log; got {text}"
            ) from None
    return ranges or None
