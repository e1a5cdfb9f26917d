"""The ops: fast, pure functions of tensors, on the best kernel the dispatcher has."""

from cmrfast.ops._native import backends, load
from cmrfast.ops.dice_ce_sums import dice_ce_sums
from cmrfast.ops.nt_xent import nt_xent

load()

__all__ = ["backends", "dice_ce_sums", "nt_xent"]
