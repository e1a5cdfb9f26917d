"""The ops: fast, pure functions of tensors, on the best kernel the dispatcher has."""

from cmrfast.ops._native import backends, load

load()

__all__ = ["backends"]
