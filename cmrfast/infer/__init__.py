"""Prediction on whole images: windows merged, and each method from volumes to volumes."""

from cmrfast.infer.sliding import sliding_window

__all__ = ["sliding_window"]
