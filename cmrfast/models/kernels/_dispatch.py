"""When a convolution runs a kernel of ours instead of PyTorch's."""

import torch
from torch import Tensor


def use_cpu_kernel(*tensors: Tensor) -> bool:
    """Whether all tensors are on the CPU, of one of the dtypes that the kernels compute in.

    This is the only check of a device outside the dispatcher. Elsewhere, and under autocast or
    export, the caller uses PyTorch's own convolution: behind a custom op, PyTorch could not choose
    its memory format or fuse it with its neighbours.
    """
    if torch.compiler.is_exporting() or torch.is_autocast_enabled("cpu"):
        return False
    dtype = tensors[0].dtype
    if dtype not in (torch.float32, torch.float64):
        return False
    return all(t.device.type == "cpu" and t.dtype == dtype for t in tensors)
