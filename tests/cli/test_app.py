"""The command itself: usage, help, how it fails, its exit codes."""

import subprocess
import sys

import pytest

import cmrfast
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


def test_version(run):
    assert run("--version") == (0, f"cmrfast {cmrfast.__version__}\n", "")


def test_help_needs_no_torch():
    code = (
        "import sys; from cmrfast import cli; sys.argv = ['cmrfast', *sys.argv[1:]]\n"
        "try:\n    cli.main()\nexcept SystemExit as left:\n    assert not left.code\n"
        "slow = {'torch', 'numpy', 'nibabel', 'matplotlib', 'rich'} & sys.modules.keys()\n"
        "assert not slow, slow"
    )
    for words in (["--help"], ["--version"], ["train", "--help"], ["report", "--help"]):
        subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True)


def test_what_takes_long_speaks_before_it_imports_torch():
    code = (
        "import sys; from cmrfast.cli import main, runs, train\n"
        "def announce(text):\n"
        "    assert 'torch' not in sys.modules; print(text); raise SystemExit\n"
        "runs.announce = train.announce = announce\n"
        "sys.argv = ['cmrfast', *sys.argv[1:]]; main()"
    )
    for words, text in {
        "train joint_scar --data d --out o": "joint_scar: training o",
        "train joint_scar --out o --resume": "joint_scar: resuming o",
        "search joint_scar --data d --out o": "joint_scar: searching in o",
        "predict r i --out o": "predicting with r",
        "evaluate r": "evaluating r",
        "report r": "reporting on r",
        "view r c": "reading r",
        "verify r": "verifying r",
        "demo --out o": "a demonstration in o",
    }.items():
        command = [sys.executable, "-c", code, *words.split()]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, f"{text}\n"), done.stderr


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
