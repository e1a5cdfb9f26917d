"""Commands that train: train, search."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cmrfast.cli.app import announce, app
from cmrfast.cli.fields import MethodCommand
from cmrfast.cli.options import (
    Changes,
    Compiled,
    Data,
    Device,
    Init,
    Labels,
    Method,
    NamedRecipe,
    Patients,
    Precision,
    Track,
    changes_of,
    known_device,
    known_method,
    positive,
    ranges_of,
    values_of,
    whole,
    without_defaults,
)


@app.command(
    cls=MethodCommand,
    epilog="Example: cmrfast train siamese_lesion --data t1_lge/ --out run1 --variant partial",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def train(
    context: typer.Context,
    method: Method,
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Root of a data set that the method reads; needed to start a run."),
    ] = None,
    patients: Patients = None,
    labels: Labels = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps in all.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training set.")] = None,
    seed: Annotated[int, typer.Option(help="Seeds every random choice.")] = 0,
    device: Device = "auto",
    init: Init = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Resume if a run exists, with its own options and fields."),
    ] = False,
    micro_batch: Annotated[
        str, typer.Option(help="Samples at a time: auto or a number; the batch size stays.")
    ] = "auto",
    precision: Annotated[
        Precision, typer.Option(help="Arithmetic of the network.")
    ] = Precision.float32,
    compiled: Annotated[
        Compiled, typer.Option("--compile", help="torch.compile; graphs: CUDA graphs too.")
    ] = Compiled.no,
    channels_last: Annotated[
        bool | None, typer.Option(help="Memory format; default: in half precision on a GPU.")
    ] = None,
    sharded: Annotated[
        bool, typer.Option("--sharded", help="Shard the weights over the ranks (FSDP).")
    ] = False,
    track: Annotated[
        list[Track] | None, typer.Option(help="Losses also go to this tracker; repeatable.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps prepared images.")] = None,
    save_every: Annotated[float, typer.Option(help="Seconds between checkpoints.")] = 600.0,
    timeout: Annotated[float, typer.Option(help="Seconds a rank waits for others.")] = 600.0,
    recipe: NamedRecipe = "paper",
    changes: Changes = None,
) -> None:
    """Train a method as published.

    Every field of its config and recipe is an option too: train METHOD --help lists them. Under
    torchrun all processes train together.
    """
    known_method(method)
    if data is None and not resume:
        raise typer.BadParameter("--data is needed, the root of a data set that the method reads")
    announce(f"{method}: {'resuming' if resume else 'training'} {out}")
    from cmrfast.data.cache import Cache
    from cmrfast.data.datasets import Split
    from cmrfast.train import train as run_training

    options = {
        "split": Split.load(patients) if patients else None,
        "steps": positive("steps", steps),
        "epochs": positive("epochs", epochs),
        "seed": seed,
        "device": known_device(device),
        "init": init,
        "resume": resume,
        "micro_batch": positive("micro-batch", whole(micro_batch)),
        "precision": precision.value,
        "compiled": compiled.value,
        "channels_last": channels_last,
        "sharded": sharded,
        "save_every_s": save_every,
        "timeout_s": timeout,
        "track": tuple(tracker.value for tracker in track or ()),
        "cache": Cache(cache) if cache else None,
        "stream": sys.stderr,
    }
    run_training(
        method,
        data,
        out,
        changes=changes_of(context, method, recipe, changes or []),
        labels=values_of(labels) or {},
        **without_defaults(context, options),
    )


@app.command(
    cls=MethodCommand,
    epilog="Example: cmrfast search joint_scar --data emidec/ --out search1 --trials 30",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def search(
    context: typer.Context,
    method: Method,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the search; each trial is a run in it.")],
    patients: Patients = None,
    trials: Annotated[int, typer.Option(min=1, help="Number of trials of all workers.")] = 30,
    storage: Annotated[
        str | None, typer.Option(help="URL of an Optuna storage; default SQLite in OUT.")
    ] = None,
    ranges: Annotated[
        list[str] | None,
        typer.Option("--range", metavar="FIELD=LOW:HIGH[:log]", help="Instead of the method's."),
    ] = None,
    labels: Labels = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of a trial.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes of a trial.")] = None,
    seed: Annotated[int, typer.Option(help="Seeds every random choice.")] = 0,
    device: Device = "auto",
    init: Init = None,
    recipe: NamedRecipe = "paper",
    changes: Changes = None,
) -> None:
    """Search for better values of a recipe.

    Bayesian optimisation of the validation score.

    Started again it resumes; more workers on the same storage share the trials.
    """
    known_method(method)
    announce(f"{method}: searching in {out}")
    from cmrfast import methods
    from cmrfast.data.datasets import Split
    from cmrfast.train.search import search as run_search

    searched = ranges_of(ranges or [])
    given = changes_of(context, method, recipe, changes or [])
    named = methods.get(method).recipes[recipe]
    for name in searched or {}:
        if name in named and given[name] == named[name]:
            del given[name]  # a range replaces the value of a named recipe
    result = run_search(
        method,
        data,
        out,
        split=Split.load(patients) if patients else None,
        trials=trials,
        ranges=searched,
        storage=storage,
        seed=seed,
        stream=sys.stderr,
        changes=given,
        labels=values_of(labels) or {},
        steps=positive("steps", steps),
        epochs=positive("epochs", epochs),
        device=known_device(device),
        init=init,
    )
    typer.echo(f"best of {result['trials']}: score {result['score']:.4g}")
    for name, value in result["best"].items():
        typer.echo(f"  --set {name}={value:.4g}")
