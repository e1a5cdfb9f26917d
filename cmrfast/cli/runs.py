"""Commands about runs: predict, evaluate, report, view, verify, demo, weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from cmrfast.cli.app import announce, app, show, show_lines
from cmrfast.cli.options import (
    AsJson,
    Device,
    Folder,
    Labels,
    Like,
    Split,
    files_of,
    known_device,
    known_method,
    known_split,
    positive,
    values_of,
)


@app.command(
    epilog="Example: cmrfast predict run1 --earlier first.nii.gz --later second.nii.gz --out out/",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def predict(
    run: Folder,
    out: Annotated[Path, typer.Option(help="Folder of the predictions; made where missing.")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT", help="Images, or data sets in any layout."),
    ] = None,
    like: Annotated[
        Like,
        typer.Option(
            help="Names of files: a folder for each case, or those of a kind of data set."
        ),
    ] = Like.folders,
    frame: Annotated[
        int | None, typer.Option(help="Time point, from 1, of images with several.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Apply a run to new patients.

    Writes NIfTI files that overlay on the input, and a table of all volumes, counts and transforms.
    Cases predicted before are skipped; a bad case does not stop the others.

    The files of a single case are options by the method's names, such as --lge FILE.
    """
    announce(f"predicting with {run}")
    from cmrfast.methods import case_of_files
    from cmrfast.runs.predict import predict as run_prediction
    from cmrfast.train.ranks import is_first_rank
    from cmrfast.train.run import Run

    paths, files = files_of(inputs or [])
    if not paths and not files:
        raise typer.BadParameter("INPUT, or the files of a case, must be given")
    opened = Run.open(run)
    if files:
        try:
            case_of_files(opened.method, files)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    outcome = run_prediction(
        opened,
        [*([files] if files else []), *paths],
        out,
        like=like.value,
        frame=positive("frame", frame),
        device=known_device(device),
        progress=show,
    )
    if not is_first_rank():
        return
    typer.echo(
        f"{len(outcome.done)} predicted, {len(outcome.skipped)} there already, "
        f"{len(outcome.failed)} failed"
    )
    _exit_if_any(outcome.failed)


@app.command(epilog="Example: cmrfast evaluate run1 --data emidec/ --split test")
def evaluate(
    run: Folder,
    data: Annotated[Path | None, typer.Option(help="Default: where it was in training.")] = None,
    split: Split = "test",
    labels: Labels = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Evaluate a run on reference labels.

    Prints the paper's metrics and table; writes every row as CSV and JSON. A bad case does not stop
    the others.
    """
    part = known_split(split)
    announce(f"evaluating {run}")
    from cmrfast.runs.evaluate import evaluate as run_evaluation
    from cmrfast.train.ranks import is_first_rank
    from cmrfast.train.run import Run

    opened = Run.open(run)
    evaluation = run_evaluation(
        opened, data, part=part, labels=values_of(labels), device=known_device(device)
    )
    if not is_first_rank():
        return
    evaluation.save(opened.path)
    show_lines(json.dumps(evaluation.as_json(), indent=1) if as_json else evaluation.table())
    _exit_if_any(evaluation.failed)


@app.command(epilog="Example: cmrfast report run1")
def report(
    run: Folder,
    data: Annotated[Path | None, typer.Option(help="Default: where it was in training.")] = None,
    split: Split = "test",
    labels: Labels = None,
    device: Device = "auto",
    viewer: Annotated[
        bool, typer.Option(help="Images of the patients that are shown, to be opened in 3-D.")
    ] = True,
) -> None:
    """Write one HTML page about a run into its folder."""
    part, root = known_split(split), str(data) if data else None
    announce(f"reporting on {run}")
    from cmrfast.runs.evaluate import Evaluation
    from cmrfast.runs.report import report as write_report
    from cmrfast.train.ranks import is_first_rank
    from cmrfast.train.run import Run

    page = write_report(
        Run.open(run),
        part=part,
        data=root,
        labels=values_of(labels),
        device=known_device(device),
        viewer=viewer,
    )
    if is_first_rank():
        show(page)
        _exit_if_any(Evaluation.load(run, part).failed)


@app.command(epilog="Example: cmrfast view run1 Case_P002 --open")
def view(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|IMAGE", help="Folder of a training run, or an image.")
    ],
    over: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CASE|MASK", help="For a RUN, a patient; for an IMAGE, masks or maps."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Default: RUN/view-CASE.html, or IMAGE's name in this folder."
        ),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    frame: Annotated[
        int | None, typer.Option(help="Time point, from 1, of an IMAGE with several; default all.")
    ] = None,
    max_mb: Annotated[float, typer.Option(help="Limit for the volumes in the page.")] = 64.0,
    data: Annotated[
        Path | None, typer.Option(help="For a RUN; default where it was in training.")
    ] = None,
    labels: Labels = None,
    device: Device = "auto",
) -> None:
    """Show a case in 3-D, on a page that needs no other file and no network.

    For a RUN, the patient is predicted and shown with the prediction, the reference labels and how
    both differ. Masks hold whole numbers, maps values from 0 to 1, such as probabilities.
    """
    names = over or []
    if not (source / "run.json").is_file():
        announce(f"reading {source}")
        from cmrfast.runs.view import view_files

        page = view_files(source, names, out, frame=positive("frame", frame), most_mb=max_mb)
    elif len(names) != 1 or frame is not None:
        raise typer.BadParameter("a RUN takes the name of one CASE, and no --frame")
    else:
        announce(f"predicting {names[0]} with {source}")
        from cmrfast.runs.view import CaseOptions, view_case
        from cmrfast.train.run import Run

        options = CaseOptions(str(data) if data else None, values_of(labels), known_device(device))
        page = view_case(Run.open(source), names[0], out, options, most_mb=max_mb)
    show(page)
    if not open_page:
        return
    import webbrowser

    if not webbrowser.open(page.resolve().as_uri()):
        show(f"no browser was found; open {page} in one", err=True)


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

    known = known_device(device) if device else None
    verification = run_verification(Run.open(run), data, device=known)
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


@app.command(epilog="Example: cmrfast weights joint_scar demo-scar")
def weights(
    method: Annotated[
        str, typer.Argument(metavar="METHOD", help="Any method except siamese_lesion.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
) -> None:
    """Copy a small network that was trained on synthetic patients, to try predictions.

    The folder is a run, and its card.md says what the network was trained on. It is of no use on
    patients.
    """
    known_method(method)
    from cmrfast.runs.weights import demo_weights

    try:
        run = demo_weights(method, out)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    show(f"{run.path}: {method}, trained on synthetic patients only; see card.md")


def _exit_if_any(failed: Mapping[str, str]) -> None:
    """Name the cases that failed; if there are any, exit with 1."""
    for name, reason in failed.items():
        show(f"failed: {name}: {reason}", err=True)
    if failed:
        raise typer.Exit(1)
