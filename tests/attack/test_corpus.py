"""Every kind of file that once failed is refused, or read, within little time and memory."""

import warnings
from pathlib import Path

import pytest

from cmrfast import FileError
from tests.attack import weights
from tests.attack.frame import alarm, peak, sanitized, start_peak

pytest.importorskip("pydicom")
from tests.attack.corpus import READ, REFUSED, Maker


def read(make: Maker, folder: Path) -> str:
    """How reading the file ends; making it is not measured."""
    weights._network()
    call = make(folder)
    before = start_peak()
    with alarm(60), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            call()
            outcome = "read"
        except FileError as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert len(str(error)) < 5000  # noqa: PT017
            outcome = "refused"
    assert peak() - before < (400 if sanitized() else 40)  # MiB
    assert not (folder / "ran").exists()
    return outcome


@pytest.mark.parametrize("name", REFUSED)
def test_what_once_failed_is_refused(tmp_path, name):
    assert read(REFUSED[name], tmp_path) == "refused"


@pytest.mark.parametrize("name", READ)
def test_what_once_failed_is_read(tmp_path, name):
    assert read(READ[name], tmp_path) == "read"
