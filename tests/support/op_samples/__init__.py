"""Sample arguments of every registered op, edge cases included: all that a new op must add.

A sample is the argument tuple of one call. The contract in tests/ops/test_contract.py runs over
each of them.
"""

import cmrfast.models.kernels
import cmrfast.ops  # noqa: F401  (declares all others)
from tests.support.op_samples import (  # noqa: F401
    intensities,
    layers,
    losses,
    patches,
    sampling,
)
from tests.support.op_samples.registry import HALVED, SAMPLES, halved

__all__ = ["HALVED", "SAMPLES", "halved"]
