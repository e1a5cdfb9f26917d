"""The command ``cmrfast``: one function a subcommand."""

from cmrfast.cli import images, runs
from cmrfast.cli.app import app, main

__all__ = ["app", "images", "main", "runs"]
