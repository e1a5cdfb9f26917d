"""Images in and out: volumes with their geometry, NIfTI, DICOM and the public data sets."""

from cmrfast.data.nifti import read_nifti, write_nifti
from cmrfast.data.volume import Volume

__all__ = ["Volume", "read_nifti", "write_nifti"]
