"""A NIfTI file to break."""

import pytest
import torch

from cmrfast.data import Volume, write_nifti


@pytest.fixture
def whole_nifti(tmp_path):
    """A plain file of 2 x 3 x 4 voxels, as bytes to break."""
    write_nifti(tmp_path / "whole.nii", Volume(torch.arange(24.0).view(1, 2, 3, 4), torch.eye(4)))
    return (tmp_path / "whole.nii").read_bytes()
