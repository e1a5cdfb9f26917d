"""The command itself: its options, errors in one line, and text that a terminal may show."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

import cmrfast
from cmrfast.printable import printable

app = typer.Typer(
    name="cmrfast",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
#: The base of all errors of usage, in whichever click typer brings.
_ClickException: Any = typer.BadParameter.__mro__[2]


def main() -> None:
    """Run the command; exit with 0, 1 when it failed, 2 when it was used wrongly."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    words = [word for word in arguments if word != "--debug"]
    try:
        with _printable_messages():
            code = app(words, prog_name="cmrfast", standalone_mode=False)
    except _ClickException as error:
        error.message = "\n".join(map(printable, error.message.split("\n")))
        error.show()
        sys.exit(error.exit_code)
    except typer.Abort:  # Ctrl-C
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        show(f"cmrfast: {' '.join(str(error).split()) or type(error).__name__}", err=True)
        sys.exit(1)
    sys.exit(code or 0)


def show(text: object, *, err: bool = False) -> None:
    """Print a line that may hold names of files: nothing in it reaches the terminal as a command.

    Args:
        text: a line; a line break in it comes from a name and is escaped as well.
        err: print on standard error.
    """
    typer.echo(printable(text), err=err)


def announce(text: object) -> None:
    """Say what is about to happen before the imports that take seconds; on stderr, one rank."""
    if os.environ.get("RANK", "0") == "0":
        show(text, err=True)


def show_lines(text: str) -> None:
    """Print several lines, such as a table."""
    for line in text.split("\n"):
        show(line)


@contextmanager
def _printable_messages() -> Iterator[None]:
    """Warnings and log records, which name files too, as lines that a terminal may show."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_PrintableFormatter())
    before = logging.lastResort, warnings.formatwarning
    logging.lastResort = handler

    def format_warning(message: Warning | str, *_: object, **__: object) -> str:
        return f"{printable(message)}\n"

    warnings.formatwarning = format_warning
    try:
        yield
    finally:
        logging.lastResort, warnings.formatwarning = before


class _PrintableFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The record's message in one line."""
        return printable(super().formatMessage(record))


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"cmrfast {cmrfast.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; anywhere in the line.")
    ] = False,
) -> None:
    """Networks for cardiac MR and MS-lesion images: data, training, evaluation."""
