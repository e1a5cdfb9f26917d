"""Reading and writing images: volumes with their geometry, NIfTI, DICOM, public data sets."""

from cmrfast.data.datasets import Part, Split, open_dataset, split_by_patient
from cmrfast.data.dicom import read_dicom_folder
from cmrfast.data.nifti import read_nifti, write_nifti
from cmrfast.data.t1_units import t1_in_ms
from cmrfast.data.volume import Volume

__all__ = [
    "Part",
    "Split",
    "Volume",
    "open_dataset",
    "read_dicom_folder",
    "read_nifti",
    "split_by_patient",
    "t1_in_ms",
    "write_nifti",
]
