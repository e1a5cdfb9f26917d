"""Commands about images and this installation: info, check, phantom, compare."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cmrfast.cli.app import app, show, show_lines
from cmrfast.cli.options import AsJson, known_method


@app.command(epilog="Example: cmrfast info --json")
def info(as_json: AsJson = False) -> None:
    """Print versions, devices and the backend of each op.

    Also says why an op has no faster backend.
    """
    from cmrfast.info import info as collect

    collected = collect()
    if as_json:
        typer.echo(json.dumps(collected, indent=1))
        return
    for part in ("versions", "devices"):
        for name, value in collected[part].items():
            typer.echo(f"{name:<12}{value}")
    typer.echo(f"\n{'op':<18}{'cpu':<12}cuda")
    for name, row in collected["backends"].items():
        typer.echo(f"{name:<18}{row['cpu']:<12}{row['cuda']}")
    for device, reason in collected["because"].items():
        typer.echo(f"{device}: {reason}")


@app.command(epilog="Example: cmrfast check patient1_LGE.nii.gz dicom_folder/")
def check(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="NIfTI files, or folders of DICOM slices."),
    ],
) -> None:
    """Read images, print their geometry and any faults.

    Fails when a file cannot be read; oddities are printed but pass.
    """
    from cmrfast.data.check import check as examine

    failed = 0
    for path in files:
        report = examine(path)
        failed += not report.readable
        show(path)
        for fact in report.facts:
            show(f"  {fact}")
        for fault in report.faults:
            show(f"  {'odd' if report.readable else 'fault'}: {fault}")
    if failed:
        typer.echo(f"{failed} of {len(files)} could not be read", err=True)
        raise typer.Exit(1)


@app.command(epilog="Example: cmrfast phantom new_lesions phantoms/ --cases 8")
def phantom(
    method: Annotated[
        str, typer.Argument(metavar="METHOD", help="The method that will read the data set.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new or empty folder.")],
    cases: Annotated[int, typer.Option(min=1, help="Patients.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    layout: Annotated[
        str | None, typer.Option(help="Which of the method's data sets; default its first.")
    ] = None,
    shrink: Annotated[
        float, typer.Option(min=1, max=4, help="How many times larger voxels are, for speed.")
    ] = 1.0,
) -> None:
    """Write synthetic patients in the layout a method reads.

    Results on it show whether the code works, not how a method performs on patients.
    """
    from cmrfast import methods
    from cmrfast.data.phantom import write_phantoms

    layouts = methods.get(known_method(method)).datasets
    if layout not in (None, *layouts):
        known = ", ".join(layouts)
        raise typer.BadParameter(f"--layout of {method} must be one of {known}; got {layout!r}")
    layout = layout or layouts[0]
    with _counting("patients") as progress:
        write_phantoms(layout, out, cases=cases, seed=seed, shrink=shrink, progress=progress)
    show(f"{out}: {cases} synthetic patients as {layout}")


@app.command(epilog="Example: cmrfast compare predicted/scar.nii.gz drawn/scar.nii.gz")
def compare(
    predicted: Annotated[Path, typer.Argument(metavar="PRED", help="A mask, NIfTI.")],
    reference: Annotated[Path, typer.Argument(metavar="REF", help="Another on the same grid.")],
    as_json: AsJson = False,
) -> None:
    """Compare two masks by overlap and distance, label by label."""
    from cmrfast.runs.compare import as_json as scores_as_json
    from cmrfast.runs.compare import as_table
    from cmrfast.runs.compare import compare as compare_masks

    scores = compare_masks(predicted, reference)
    show_lines(scores_as_json(scores) if as_json else as_table(scores))


@contextmanager
def _counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function of (done, total): a bar on a terminal, else a line each time; on stderr."""
    if not sys.stderr.isatty():
        yield lambda done, count: typer.echo(f"{what} {done} of {count}", err=True)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, count: bar.update(task, completed=done, total=count)
