"""One training at a time in a folder; the lock of one that was killed is taken over."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from cmrfast import FileError
from cmrfast.train import lock
from cmrfast.train.lock import hold

OWNER = """
import sys, time
from pathlib import Path
from cmrfast.train.lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def owner(tmp_path):
    """Another process that holds the lock of ``run``."""
    command = [sys.executable, "-c", OWNER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_training_is_refused_by_its_owners_name(tmp_path, owner):
    host = os.uname().nodename
    with (
        pytest.raises(FileError, match=rf"run is being trained by process {owner.pid} on {host}$"),
        hold(tmp_path / "run"),
    ):
        pass


def test_a_killed_owners_lock_is_taken_over_by_name(tmp_path, owner, caplog):
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with hold(tmp_path / "run"):
        assert f"was left locked by process {owner.pid} on" in caplog.text
        assert f"process {os.getpid()} on" in (tmp_path / "run" / "lock").read_text()


def test_it_is_removed_in_order_and_holds_once_in_a_process(tmp_path):
    (tmp_path / "run").mkdir()
    with hold(tmp_path / "run"):
        with pytest.raises(FileError, match="is being trained by process"), hold(tmp_path / "run"):
            pass
        assert (tmp_path / "run" / "lock").exists()  # the refused one left it
    assert list((tmp_path / "run").iterdir()) == []
    with hold(tmp_path / "run"):
        pass
    with pytest.raises(ValueError, match="no data"), hold(tmp_path / "new"):
        raise ValueError("no data")
    assert not (tmp_path / "new").exists()


def test_an_owner_elsewhere_counts_while_it_renews_its_lock(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lock, "_WATCH_S", 0.5)
    monkeypatch.setattr(lock, "_RENEW_S", 0.1)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "lock").write_text("process 7 on elsewhere\n")
    os.utime(folder / "lock", (2**33, 2**33))  # clocks do not matter, only changes
    seen = iter(range(1, 100))
    with monkeypatch.context() as patch:
        patch.setattr(lock, "_stamp", lambda file: next(seen))
        with pytest.raises(FileError, match="by process 7 on elsewhere"), hold(folder):
            pass
    with hold(folder):
        assert "was left locked by process 7 on elsewhere, which has ended" in caplog.text


def test_a_file_system_without_locks_goes_by_the_time_stamp(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_WATCH_S", 1.0)
    monkeypatch.setattr(lock, "_RENEW_S", 0.1)

    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with (
        hold(tmp_path / "run"),
        pytest.raises(FileError, match=f"by process {os.getpid()}"),
        hold(tmp_path / "run"),
    ):
        pass
    (tmp_path / "lock").write_text(f"process 1 on {os.uname().nodename}\n")
    with hold(tmp_path):  # nobody renews it
        pass


def test_a_held_lock_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_RENEW_S", 0.05)
    with hold(tmp_path):
        os.utime(tmp_path / "lock", (0, 0))
        end = time.monotonic() + 10
        while (tmp_path / "lock").stat().st_mtime == 0:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_folder_that_cannot_be_made_is_an_error_of_files(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="cannot be locked: "), hold(tmp_path / "file" / "run"):
        pass
