"""Images in and out: volumes with their geometry, NIfTI, DICOM and the public data sets."""

from cmrfast.data.datasets import Split, open_dataset, split_by_patient
from cmrfast.data.nifti import read_nifti, write_nifti
from cmrfast.data.volume import Volume

__all__ = ["Split", "Volume", "open_dataset", "read_nifti", "split_by_patient", "write_nifti"]
