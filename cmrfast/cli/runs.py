"""Commands about runs: predict, evaluate, report, verify, demo."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cmrfast.cli.app import announce, app, show, show_lines
from cmrfast.cli.options import AsJson, Device, Folder, Split, known_split


@app.command(epilog="Example: cmrfast predict run1 patient07/ patient08/ --out predicted/")
def predict(
    run: Folder,
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT", help="Images, or folders.")],
    out: Annotated[Path, typer.Option(help="Folder; each case gets one in it.")],
    device: Device = "auto",
) -> None:
    """Apply a run to new patients.

    Writes NIfTI files that overlay on the input. Cases predicted before are skipped; a bad case
    does not stop the others.
    """
    announce(f"predicting with {run}")
    from cmrfast.runs.predict import predict as run_prediction
    from cmrfast.train.ranks import is_first_rank
    from cmrfast.train.run import Run

    outcome = run_prediction(Run.open(run), inputs, out, device=device, progress=show)
    if not is_first_rank():
        return
    typer.echo(
        f"{len(outcome.done)} predicted, {len(outcome.skipped)} there already, "
        f"{len(outcome.failed)} failed"
    )
    for name, reason in outcome.failed.items():
        show(f"failed: {name}: {reason}", err=True)
    if outcome.failed:
        raise typer.Exit(1)


@app.command(epilog="Example: cmrfast evaluate run1 --data emidec/ --split test")
def evaluate(
    run: Folder,
    data: Annotated[Path | None, typer.Option(help="Default: where it was in training.")] = None,
    split: Split = "test",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Evaluate a run on reference labels.

    Prints the paper's metrics and table; writes every row as CSV and JSON.
    """
    part = known_split(split)
    announce(f"evaluating {run}")
    from cmrfast.runs.evaluate import evaluate as run_evaluation
    from cmrfast.train.ranks import is_first_rank
    from cmrfast.train.run import Run

    opened = Run.open(run)
    evaluation = run_evaluation(opened, data, part=part, device=device)
    if not is_first_rank():
        return
    evaluation.save(opened.path)
    show_lines(json.dumps(evaluation.as_json(), indent=1) if as_json else evaluation.table())


@app.command(epilog="Example: cmrfast report run1")
def report(
    run: Folder,
    data: Annotated[Path | None, typer.Option(help="Default: where it was in training.")] = None,
    split: Split = "test",
    device: Device = "auto",
) -> None:
    """Write one HTML page about a run into its folder."""
    part, root = known_split(split), str(data) if data else None
    announce(f"reporting on {run}")
    from cmrfast.runs.report import report as write_report
    from cmrfast.train.ranks import is_first_rank
    from cmrfast.train.run import Run

    page = write_report(Run.open(run), part=part, data=root, device=device)
    if is_first_rank():
        show(page)


@app.command(epilog="Example: cmrfast verify run1")
def verify(
    run: Folder,
    data: Annotated[Path | None, typer.Option(help="Default: where it was in training.")] = None,
    device: Annotated[str | None, typer.Option(help="Default: the kind it was trained on.")] = None,
) -> None:
    """Check that this machine computes a run's bits.

    Repeats the preparation, the first step and a prediction, and compares them with the hashes that
    the run stored. Fails where they differ, and says where they first do.
    """
    announce(f"verifying {run}")
    from cmrfast.runs.verify import verify as run_verification
    from cmrfast.train.ranks import is_first_rank
    from cmrfast.train.run import Run

    verification = run_verification(Run.open(run), data, device=device)
    if is_first_rank():
        show_lines(str(verification))
    if not verification.same:
        raise typer.Exit(1)


@app.command(epilog="Example: cmrfast demo --out demo/")
def demo(
    out: Annotated[
        Path, typer.Option(help="A new or empty folder, or that of an earlier demo.")
    ] = Path("cmrfast-demo"),
) -> None:
    """Train on synthetic patients, in under two minutes."""
    announce(f"a demonstration in {out}")
    from cmrfast.runs.demo import demo as run_demo

    run_demo(out, say=show_lines)
