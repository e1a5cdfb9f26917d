"""The command ``cmrfast``: one function a subcommand, listed in the order of the imports."""

from cmrfast.cli import tools, data, train, runs  # isort: skip
from cmrfast.cli.app import app, main

__all__ = ["app", "data", "main", "runs", "tools", "train"]
