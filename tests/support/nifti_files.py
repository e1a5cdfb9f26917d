"""NIfTI files with false headers."""

import numpy as np
from nibabel.nifti1 import header_dtype as nifti1


def broken(path, raw, **fields):
    """The file with some fields changed."""
    header = np.frombuffer(raw[:348], nifti1).copy()
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.tobytes() + raw[348:])
    return path
