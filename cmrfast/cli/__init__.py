"""The command ``cmrfast``: one function a subcommand, listed in the order of the imports."""

from cmrfast.cli import tools, train, runs  # isort: skip
from cmrfast.cli.app import app, main

__all__ = ["app", "main", "runs", "tools", "train"]
