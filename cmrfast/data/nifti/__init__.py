"""NIfTI files: checked reading and verified writing."""

from cmrfast.data.nifti.header import Header, read_header
from cmrfast.data.nifti.read import read_nifti
from cmrfast.data.nifti.write import write_nifti

__all__ = ["Header", "read_header", "read_nifti", "write_nifti"]
