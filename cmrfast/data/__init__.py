"""Images in and out: volumes with their geometry, NIfTI, DICOM and the public data sets."""
