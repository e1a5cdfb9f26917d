"""T1 maps come in seconds, milliseconds or tenths of them: told apart by what hearts can have."""

import warnings

import torch

from cmrfast.data.volume import Volume

#: Fit failures of 12-bit maps, which no average should contain.
FIT_FAILURES = (0, 4095)


def t1_in_ms(volume: Volume, *, name: str = "the map") -> Volume:
    """The map in milliseconds, converted with a warning where its median says another unit.

    Tissue and blood have 200 to 2500 ms, so that a median below 10 means seconds and one beyond
    5000 tenths of a millisecond. Voxels of 0 and 4095, where fits fail, do not count.

    Args:
        volume: T1 in any of the three units.
        name: of the map, for the warning.

    Example:
        >>> t1_in_ms(Volume(torch.full((1, 2, 2, 1), 1150), torch.eye(4))).data.unique()
        tensor([1150])
    """
    values = volume.data.double()
    failed = torch.isin(values, torch.tensor(FIT_FAILURES, dtype=torch.float64))
    fitted = values[~failed & values.isfinite()]
    if not fitted.numel():
        raise ValueError(f"t1_in_ms: {name} holds no value but 0, 4095 and non-finite ones")
    median = fitted.median().item()
    if median < 10:
        factor, unit = 1000.0, "seconds"
    elif median > 5000:
        factor, unit = 0.1, "tenths of a millisecond"
    else:
        return volume
    warnings.warn(
        f"t1_in_ms: {name} seems to be in {unit} (median {median:.4g}); converted to ms",
        stacklevel=2,
    )
    return volume.with_data((values * factor).float())
