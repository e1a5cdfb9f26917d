"""The command ``cmrfast``: one function a subcommand, errors in one line."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cmrfast.models import MODELS

app = typer.Typer(
    name="cmrfast",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command; exit with 0, 1 when it failed, 2 when it was used wrongly."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        app([word for word in arguments if word != "--debug"], prog_name="cmrfast")
    except Exception as error:
        if debug:
            raise
        typer.echo(f"cmrfast: {' '.join(str(error).split()) or type(error).__name__}", err=True)
        sys.exit(1)


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; anywhere in the line.")
    ] = False,
) -> None:
    """Networks for cardiac MR and MS-lesion images: data, training, evaluation."""


@app.command(epilog="Example: cmrfast check patient1_LGE.nii.gz dicom_folder/")
def check(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="NIfTI files, or folders of DICOM slices."),
    ],
) -> None:
    """Read images, print their geometry and name every fault.

    Fails when a file cannot be read; what is merely odd is named and passes.
    """
    from cmrfast.data.check import check as examine

    failed = 0
    for path in files:
        report = examine(path)
        failed += not report.readable
        typer.echo(f"{path}")
        for fact in report.facts:
            typer.echo(f"  {fact}")
        for fault in report.faults:
            typer.echo(f"  {'odd' if report.readable else 'fault'}: {fault}")
    if failed:
        typer.echo(f"{failed} of {len(files)} could not be read", err=True)
        raise typer.Exit(1)


Method = Annotated[str, typer.Argument(metavar="METHOD", help=f"One of {', '.join(MODELS)}.")]
Folder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training run.")]
Data = Annotated[Path, typer.Option(help="Root of a data set that the method reads.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1 …")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(epilog="Example: cmrfast info --json")
def info(as_json: AsJson = False) -> None:
    """Print versions, devices, and which backend each op got and why not another."""
    from cmrfast.info import info as collect

    found = collect()
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for part in ("versions", "devices"):
        for name, value in found[part].items():
            typer.echo(f"{name:<12}{value}")
    typer.echo(f"\n{'op':<18}{'cpu':<12}cuda")
    for name, row in found["backends"].items():
        typer.echo(f"{name:<18}{row['cpu']:<12}{row['cuda']}")
    for device, reason in found["because"].items():
        typer.echo(f"{device}: {reason}")


@app.command(
    epilog="Example: cmrfast train siamese_lesion --data t1_lge/ --out run1 --variant partial",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def train(
    context: typer.Context,
    method: Method,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    steps: Annotated[int | None, typer.Option(help="Optimiser steps in all.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training set.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue, or start.")] = False,
    micro_batch: Annotated[
        str, typer.Option(help="Samples at once: auto, or a number; the batch stays whole.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    compiled: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Its log too.")] = False,
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps prepared images.")] = None,
    save_every: Annotated[float, typer.Option(help="Seconds between checkpoints.")] = 600.0,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Of the recipe.")
    ] = None,
) -> None:
    """Train a method as published; fields of its config are options of their own.

    Under torchrun all processes train as one.
    """
    from cmrfast.data.cache import Cache
    from cmrfast.train import train as run_training

    run_training(
        _method(method),
        data,
        out,
        changes=_changes(method, changes or [], context.args),
        steps=_positive("steps", steps),
        epochs=_positive("epochs", epochs),
        seed=seed,
        device=device,
        resume=resume,
        micro_batch=None
        if micro_batch == "auto"
        else _positive("micro-batch", _whole(micro_batch)),
        precision=None if precision == "auto" else precision,
        compiled=compiled,
        save_every_s=save_every,
        tensorboard=tensorboard,
        cache=Cache(cache) if cache else None,
        stream=sys.stderr,
    )


@app.command(epilog="Example: cmrfast predict run1 patient07/ patient08/ --out predicted/")
def predict(
    run: Folder,
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT", help="Images, or folders.")],
    out: Annotated[Path, typer.Option(help="Folder; each case gets one in it.")],
    device: Device = "auto",
) -> None:
    """Apply a run to new patients: NIfTI files that overlay on the input.

    Cases predicted before are skipped; one bad case does not stop the others.
    """
    from cmrfast.predict import Outcome
    from cmrfast.predict import predict as run_prediction
    from cmrfast.train import Run, joined

    with joined(device) as ranks:
        own = run_prediction(
            Run.open(run),
            inputs,
            out,
            device=ranks.device,
            rank=ranks.rank,
            ranks=ranks.count,
            progress=typer.echo,
        )
        outcome = Outcome()
        for part in ranks.gather(own):
            outcome.done += part.done
            outcome.skipped += part.skipped
            outcome.failed |= part.failed
        if not ranks.first:
            return
    typer.echo(
        f"{len(outcome.done)} predicted, {len(outcome.skipped)} there already, "
        f"{len(outcome.failed)} failed"
    )
    for name, reason in outcome.failed.items():
        typer.echo(f"failed: {name}: {reason}", err=True)
    if outcome.failed:
        raise typer.Exit(1)


@app.command(epilog="Example: cmrfast evaluate run1 --data emidec/ --split test")
def evaluate(
    run: Folder,
    data: Annotated[Path | None, typer.Option(help="Default: where it lay in training.")] = None,
    split: Annotated[str, typer.Option(help="train, validate, test or all.")] = "test",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Hold a run against labels: the paper's metrics and table, per case as CSV and JSON."""
    from cmrfast.evaluate import Evaluation
    from cmrfast.evaluate import evaluate as run_evaluation
    from cmrfast.train import Run, joined

    if split not in ("train", "validate", "test", "all"):
        raise typer.BadParameter(f"must be train, validate, test or all; got {split}")
    with joined(device) as ranks:
        opened = Run.open(run)
        own = run_evaluation(
            opened, data, part=split, device=ranks.device, rank=ranks.rank, ranks=ranks.count
        )
        rows = [row for part in ranks.gather(own.rows) for row in part]
        found = Evaluation(own.method, split, rows)
        if not ranks.first:
            return
    found.save(opened.path)
    typer.echo(json.dumps(found.as_json(), indent=1) if as_json else found.table())


@app.command(epilog="Example: cmrfast compare predicted/scar.nii.gz drawn/scar.nii.gz")
def compare(
    predicted: Annotated[Path, typer.Argument(metavar="PRED", help="A mask, NIfTI.")],
    reference: Annotated[Path, typer.Argument(metavar="REF", help="Another on the same grid.")],
    as_json: AsJson = False,
) -> None:
    """Print all mask metrics between two masks, for each label."""
    from cmrfast.evaluate import as_table
    from cmrfast.evaluate import compare as run_comparison

    found = run_comparison(predicted, reference)
    typer.echo(json.dumps(found, indent=1) if as_json else as_table(found))


def _method(name: str) -> str:
    if name not in MODELS:
        raise typer.BadParameter(f"METHOD must be one of {', '.join(MODELS)}; got {name}")
    return name


def _positive(name: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise typer.BadParameter(f"--{name} must be at least 1; got {value}")
    return value


def _whole(text: str) -> int | None:
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise typer.BadParameter(f"must be auto or a whole number; got {text}") from None


def _changes(method: str, pairs: list[str], extra: list[str]) -> dict[str, Any]:
    """Fields from ``--set field=value`` and from ``--field value``."""
    from cmrfast.train.run import changed

    words = [word for pair in pairs for word in ("--" + pair.replace("=", " ", 1)).split(" ", 1)]
    words += [part for word in extra for part in word.split("=", 1)]
    if len(words) % 2 or not all(name.startswith("--") for name in words[::2]):
        raise typer.BadParameter(f"options come as --field value; got {' '.join(words)}")
    changes = {
        name[2:].replace("-", "_"): _value(text)
        for name, text in zip(words[::2], words[1::2], strict=True)
    }
    try:
        changed(method, changes)
    except (ValueError, TypeError) as error:
        raise typer.BadParameter(str(error)) from None
    return changes


def _value(text: str) -> Any:
    """A number, a boolean, a tuple such as 1,2,3, or the text itself."""
    if "," in text:
        return tuple(_value(part) for part in text.strip("()").split(",") if part)
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)
