"""A volume checks its tensors and knows its grid."""

import numpy as np
import pytest
import torch

from cmrfast.data import Volume


@pytest.mark.parametrize(
    ("data", "matrix", "error", "message"),
    [
        (
            np.zeros((1, 2, 2, 2)),
            torch.eye(4),
            TypeError,
            "data must be a real tensor; got ndarray",
        ),
        (
            torch.zeros(1, 2, 2, 2, dtype=torch.cfloat),
            torch.eye(4),
            TypeError,
            "got torch.complex64",
        ),
        (torch.zeros(2, 2, 2), torch.eye(4), ValueError, r"data must be \(C, I, J, K\); got \(2,"),
        (torch.zeros(1, 2, 2, 2), torch.eye(3), ValueError, r"must be \(4, 4\); got \(3, 3\)"),
        (torch.zeros(1, 2, 2, 2), torch.ones(4, 4), ValueError, "must end in the row 0 0 0 1"),
        (torch.zeros(1, 2, 2, 2), torch.eye(4) * torch.nan, ValueError, "must be finite"),
        (
            torch.zeros(1, 2, 2, 2),
            torch.diag(torch.tensor([1.0, 1, 0, 1])),
            ValueError,
            "1e9 mm; got",
        ),
    ],
)
def test_a_volume_is_checked(data, matrix, error, message):
    with pytest.raises(error, match=message):
        Volume(data, matrix)


def test_volume_properties():
    volume = Volume(torch.zeros(2, 3, 4, 5), torch.diag(torch.tensor([-2.0, -3, 4, 1])))
    assert (volume.shape, volume.channels, volume.orientation) == ((3, 4, 5), 2, "LPS")
    assert volume.spacing_mm == (2, 3, 4)
    assert volume.shares_grid(volume.with_data(torch.zeros(1, 3, 4, 5)))
    moved = volume.world_from_vox.clone()
    moved[0, 3] += 0.01
    assert not volume.shares_grid(Volume(volume.data, moved))
    assert volume.shares_grid(Volume(volume.data, moved), tolerance_mm=0.02)
    with pytest.raises(ValueError, match="with_data: data must lie on the grid"):
        volume.with_data(torch.zeros(1, 3, 4, 6))
