"""Commands about data sets: data describe."""

from pathlib import Path
from typing import Annotated

import typer

from cmrfast.cli.app import app, show, show_lines
from cmrfast.cli.options import Labels, values_of

data = typer.Typer(help="Inspect your own data.", no_args_is_help=True)
app.add_typer(data, name="data")


@data.command(epilog="Example: cmrfast data describe scans/ --write cases.csv")
def describe(
    root: Annotated[
        Path, typer.Argument(metavar="ROOT", help="A data set, or any folder of NIfTI files.")
    ],
    labels: Labels = None,
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a table of the cases, to be edited.")
    ] = None,
) -> None:
    """Say what a folder holds and which methods can use it.

    Prints its layout, sequences and labels, what each method can do with it, and faults of files.
    Reads no voxels.
    """
    from cmrfast.data.datasets import write_table
    from cmrfast.methods.describe import describe as describe_folder
    from cmrfast.methods.describe import require_structures

    values = values_of(labels)
    try:
        require_structures(values or {})
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    description = describe_folder(root, values)
    show_lines(str(description))
    if write:
        if write.exists():
            raise typer.BadParameter(f"--write: {write} exists")
        write_table(description.dataset.cases, write)
        show(f"{write}: {len(description.dataset)} cases; --data {write} reads it")
