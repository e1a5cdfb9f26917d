"""Units of T1 maps."""

import pytest
import torch

from cmrfast.data import Volume, t1_in_ms


def test_units_of_t1():
    def volume(*values):
        return Volume(torch.tensor(values).view(1, -1, 1, 1), torch.eye(4))

    with pytest.warns(UserWarning, match="t1_in_ms: the map seems to be in seconds"):
        seconds = t1_in_ms(volume(0.0, 0.0, 0.0, 1.1, 1.2, 1.3))
    torch.testing.assert_close(seconds.data.flatten()[3:], torch.tensor([1100.0, 1200, 1300]))
    kept = volume(0, 4095, 4095, 4095, 450)
    assert t1_in_ms(kept) is kept
    with pytest.raises(ValueError, match="t1_in_ms: the map holds no value but 0, 4095"):
        t1_in_ms(volume(0.0, 4095.0, torch.nan))
