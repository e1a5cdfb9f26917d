"""The command itself: usage, help, how it fails, its exit codes."""

import subprocess
import sys

import pytest

from cmrfast import cli
from cmrfast.cli.app import app
from tests.support.paths import ROOT


@pytest.mark.parametrize("arguments", [["frobnicate"], ["--frobnicate"], ["check", "--x", "a"]])
def test_bad_usage(run, arguments):
    code, _, errors = run(*arguments)
    assert code == 2
    assert "No such" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("arguments", [["--help"], ["check", "--help"], ["check", "-h"]])
def test_help(run, arguments):
    code, output, _ = run(*arguments)
    assert code == 0
    assert "Usage: cmrfast" in output


def test_every_command_shows_an_example():
    for command in cli.app.registered_commands:
        assert command.epilog.startswith("Example: cmrfast ")


def test_an_error_is_one_line_and_debug_shows_more(run, image, monkeypatch):
    def fail(path):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("cmrfast.data.check.check", fail)
    code, _, errors = run("check", image)
    assert (code, errors) == (1, "cmrfast: two lines\n")
    monkeypatch.setattr(sys, "argv", ["cmrfast", "check", str(image), "--debug"])
    with pytest.raises(RuntimeError, match="two"):
        cli.main()


def test_as_a_module(image):
    command = [sys.executable, "-m", "cmrfast", "check", str(image)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "2 x 3 x 4 voxels" in done.stdout


@pytest.mark.parametrize("command", [c.callback.__name__ for c in app.registered_commands])
def test_every_help_has_an_example(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"Example: cmrfast {command}" in out
