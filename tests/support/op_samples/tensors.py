"""Random tensors, and volumes in the forms that ops on patches take."""

import torch


def normal(*shape: int, device: str, dtype: torch.dtype) -> torch.Tensor:
    """Random numbers made on the CPU, so that all devices see one input."""
    return torch.randn(*shape, dtype=torch.float64).to(dtype).to(device)


def packed(device, dtype, axes):
    """A buffer of three volumes of two channels, and where they lie in it."""
    shapes = [(7, 11), (1, 1), (13, 5)] if axes == 2 else [(5, 7, 11), (1, 1, 1), (3, 13, 2)]
    counts = [2 * torch.Size(s).numel() for s in shapes]
    rows = [(sum(counts[:v]), *shape) for v, shape in enumerate(shapes)]
    values = 40 * torch.randn(sum(counts))
    buffer = values.abs().to(dtype) if dtype == torch.uint8 else values.to(dtype)
    return buffer.to(device), torch.tensor(rows, device=device), shapes


def dense(device, axes):
    """An empty table, the one shape of two volumes of two channels, and their voxels."""
    shape = (7, 11) if axes == 2 else (5, 7, 11)
    table = torch.empty(0, 1 + axes, dtype=torch.int64, device=device)
    return table, shape, 4 * torch.Size(shape).numel()
