"""Commands about runs: train, search, predict, evaluate, report, demo."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from cmrfast.cli.app import app
from cmrfast.cli.options import (
    AsJson,
    Changes,
    Compiled,
    Data,
    Device,
    Folder,
    Method,
    Split,
    changes_of,
    known_method,
    known_split,
    positive,
    ranges_of,
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
    steps: Annotated[int | None, typer.Option(help="Optimiser steps in all.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training set.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue, or start.")] = False,
    micro_batch: Annotated[
        str, typer.Option(help="Samples at once: auto, or a number; the batch stays whole.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    compiled: Annotated[
        Compiled, typer.Option("--compile", help="torch.compile; graphs: CUDA graphs too.")
    ] = Compiled.no,
    channels_last: Annotated[
        bool | None, typer.Option(help="Memory format; default: in half precision on a GPU.")
    ] = None,
    sharded: Annotated[
        bool, typer.Option("--sharded", help="Deal the weights out to the ranks (FSDP).")
    ] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Its log too.")] = False,
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps prepared images.")] = None,
    save_every: Annotated[float, typer.Option(help="Seconds between checkpoints.")] = 600.0,
    timeout: Annotated[float, typer.Option(help="Seconds that a rank waits for another.")] = 600.0,
    changes: Changes = None,
) -> None:
    """Train a method as published; fields of its config are options of their own.

    Under torchrun all processes train as one.
    """
    from cmrfast.data.cache import Cache
    from cmrfast.train import train as run_training

    run_training(
        known_method(method),
        data,
        out,
        changes=changes_of(method, changes or [], context.args),
        steps=positive("steps", steps),
        epochs=positive("epochs", epochs),
        seed=seed,
        device=device,
        resume=resume,
        micro_batch=positive("micro-batch", whole(micro_batch)),
        precision=None if precision == "auto" else precision,
        compiled=compiled.value,
        channels_last=channels_last,
        sharded=sharded,
        save_every_s=save_every,
        timeout_s=timeout,
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
    split: Split = "test",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Hold a run against labels: the paper's metrics and table, per case as CSV and JSON."""
    from cmrfast.evaluate import evaluate as run_evaluation
    from cmrfast.evaluate import evaluation
    from cmrfast.train import Run, joined

    part = known_split(split)
    with joined(device) as ranks:
        opened = Run.open(run)
        own = run_evaluation(
            opened,
            data,
            part=part,
            device=ranks.device,
            rank=ranks.rank,
            ranks=ranks.count,
        )
        rows = [row for rank_rows in ranks.gather(own.rows) for row in rank_rows]
        found = evaluation(opened, part, rows)
        if not ranks.first:
            return
    found.save(opened.path)
    typer.echo(json.dumps(found.as_json(), indent=1) if as_json else found.table())


@app.command(
    epilog="Example: cmrfast search joint_scar --data emidec/ --out search1 --trials 30",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def search(
    context: typer.Context,
    method: Method,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the search; each trial is a run in it.")],
    trials: Annotated[int, typer.Option(min=1, help="Of all workers together.")] = 30,
    storage: Annotated[
        str | None, typer.Option(help="URL of an Optuna storage; default SQLite in OUT.")
    ] = None,
    ranges: Annotated[
        list[str] | None,
        typer.Option("--range", metavar="FIELD=LOW:HIGH[:log]", help="Instead of the method's."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of a trial.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes of a trial.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    device: Device = "auto",
    changes: Changes = None,
) -> None:
    """Find better values of a recipe by Bayesian optimisation of the validation score.

    Started again it goes on; started elsewhere on the same storage it helps.
    """
    from cmrfast.train.search import search as run_search

    found = run_search(
        known_method(method),
        data,
        out,
        trials=trials,
        ranges=ranges_of(ranges or []),
        storage=storage,
        seed=seed,
        stream=sys.stderr,
        changes=changes_of(method, changes or [], context.args),
        steps=positive("steps", steps),
        epochs=positive("epochs", epochs),
        device=device,
    )
    typer.echo(f"best of {found['trials']}: score {found['score']:.4g}")
    for name, value in found["best"].items():
        typer.echo(f"  --set {name}={value:.4g}")


@app.command(epilog="Example: cmrfast report run1")
def report(
    run: Folder,
    data: Annotated[Path | None, typer.Option(help="Default: where it lay in training.")] = None,
    split: Split = "test",
    device: Device = "auto",
) -> None:
    """Write one HTML page about a run into its folder: curves, tables, pictures."""
    from cmrfast.report import report as write_report
    from cmrfast.train import Run, joined

    part = known_split(split)
    with joined(device) as ranks:
        page = write_report(
            Run.open(run),
            part=part,
            data=str(data) if data else None,
            device=ranks.device,
        )
    typer.echo(str(page))


@app.command(epilog="Example: cmrfast demo --out demo/")
def demo(
    out: Annotated[Path, typer.Option(help="A new or empty folder.")] = Path("cmrfast-demo"),
) -> None:
    """From nothing to a report in under two minutes: synthetic patients, training, scores."""
    from cmrfast.demo import demo as run_demo

    run_demo(out, say=typer.echo)
