"""The command, run in this process."""

import sys

import pytest
import torch

from cmrfast import cli
from cmrfast.data import Volume, write_nifti


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the command in this process: exit code, output, errors."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["cmrfast", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def image(tmp_path):
    matrix = torch.diag(torch.tensor([-1.5, -1.5, 8, 1.0]))
    data = torch.arange(24, dtype=torch.int16).view(1, 2, 3, 4)
    write_nifti(tmp_path / "a.nii.gz", Volume(data, matrix))
    return tmp_path / "a.nii.gz"
