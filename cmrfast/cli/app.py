"""The command itself: its options, and errors in one line."""

import sys
from typing import Annotated

import typer

app = typer.Typer(
    name="cmrfast",
    no_args_is_help=True,
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
