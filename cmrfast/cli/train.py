"""Commands that train: train, search."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cmrfast.cli.app import app
from cmrfast.cli.options import (
    Changes,
    Compiled,
    Data,
    Device,
    Labels,
    Method,
    NamedRecipe,
    changes_of,
    known_method,
    positive,
    ranges_of,
    values_of,
    whole,
)


@app.command(
    epilog="Example: cmrfast train siamese_lesion --data t1_lge/ --out run1 --variant partial",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def train(
    context: typer.Context,
    method: Method,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    patients: Annotated[
        Path | None,
        typer.Option(
            help="JSON file: patients, or sequences of them, to train, validate and test on."
        ),
    ] = None,
    labels: Labels = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps in all.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training set.")] = None,
    seed: Annotated[int, typer.Option(help="Seeds every random choice.")] = 0,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Resume if a run exists.")] = False,
    micro_batch: Annotated[
        str, typer.Option(help="Samples at a time: auto or a number; the batch size stays.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    compiled: Annotated[
        Compiled, typer.Option("--compile", help="torch.compile; graphs: CUDA graphs too.")
    ] = Compiled.no,
    channels_last: Annotated[
        bool | None, typer.Option(help="Memory format; default: in half precision on a GPU.")
    ] = None,
    sharded: Annotated[
        bool, typer.Option("--sharded", help="Shard the weights over the ranks (FSDP).")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard events.")
    ] = False,
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps prepared images.")] = None,
    save_every: Annotated[float, typer.Option(help="Seconds between checkpoints.")] = 600.0,
    timeout: Annotated[float, typer.Option(help="Seconds a rank waits for others.")] = 600.0,
    recipe: NamedRecipe = "paper",
    changes: Changes = None,
) -> None:
    """Train a method as published.

    Every field of its config and recipe is an option too. Under torchrun all processes train
    together.
    """
    from cmrfast.data.cache import Cache
    from cmrfast.data.datasets import Split as Patients
    from cmrfast.train import train as run_training

    run_training(
        known_method(method),
        data,
        out,
        changes=changes_of(method, recipe, changes or [], context.args),
        split=Patients.load(patients) if patients else None,
        labels=values_of(labels) or {},
        steps=positive("steps", steps),
        epochs=positive("epochs", epochs),
        seed=seed,
        device=device,
        resume=resume,
        micro_batch=positive("micro-batch", whole(micro_batch)),
        precision=precision,
        compiled=compiled.value,
        channels_last=channels_last,
        sharded=sharded,
        save_every_s=save_every,
        timeout_s=timeout,
        tensorboard=tensorboard,
        cache=Cache(cache) if cache else None,
        stream=sys.stderr,
    )


@app.command(
    epilog="Example: cmrfast search joint_scar --data emidec/ --out search1 --trials 30",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def search(
    context: typer.Context,
    method: Method,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the search; each trial is a run in it.")],
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
    recipe: NamedRecipe = "paper",
    changes: Changes = None,
) -> None:
    """Search for better values of a recipe.

    Bayesian optimisation of the validation score.

    Started again it resumes; more workers on the same storage share the trials.
    """
    from cmrfast.train.search import search as run_search

    result = run_search(
        known_method(method),
        data,
        out,
        trials=trials,
        ranges=ranges_of(ranges or []),
        storage=storage,
        seed=seed,
        stream=sys.stderr,
        changes=changes_of(method, recipe, changes or [], context.args),
        labels=values_of(labels) or {},
        steps=positive("steps", steps),
        epochs=positive("epochs", epochs),
        device=device,
    )
    typer.echo(f"best of {result['trials']}: score {result['score']:.4g}")
    for name, value in result["best"].items():
        typer.echo(f"  --set {name}={value:.4g}")
