"""T1 maps are in s, ms or 0.1 ms: infer the unit from the T1 values that hearts can have."""

import warnings

import torch

from cmrfast.data.volume import Volume

#: Values of failed fits in 12-bit maps; exclude them from any average.
FIT_FAILURES = (0, 4095)


def t1_in_ms(volume: Volume, *, name: str = "the map") -> Volume:
    """Convert a T1 map to milliseconds, with a warning if its median implies another unit.

    T1 of tissue and blood is 200 to 2500 ms, so a median below 10 means seconds, and one above
    5000 means tenths of a millisecond. Voxels of 0 and 4095, where fits failed, are ignored.

    Args:
        volume: T1 in any of the three units.
        name: name of the map, for the warning.

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
