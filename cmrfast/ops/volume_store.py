"""Volumes of different shapes packed into one buffer, for ops on windows of many volumes."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from cmrfast.ops._check import kind


class VolumeStore:
    """Volumes packed once, in their own dtype, on the CPU or a GPU.

    Args:
        volumes: tensors (C, *S_v) with the same dtype and number of channels, two or three space
            axes; shapes may differ.
        device: of the buffer; default that of the first volume.

    Example:
        >>> store = VolumeStore([torch.zeros(1, 20, 30, 20), torch.zeros(1, 24, 24, 18)])
        >>> len(store), store.channels, store.axes
        (2, 1, 3)
    """

    def __init__(self, volumes: Sequence[Tensor], device: torch.device | str | None = None) -> None:
        if isinstance(volumes, Tensor) or not len(volumes):
            raise ValueError("VolumeStore: volumes must be a list of at least one tensor (C, *S)")
        first = volumes[0]
        for volume in volumes:
            if not isinstance(volume, Tensor) or volume.is_complex():
                raise TypeError(f"VolumeStore: volumes must be real tensors; got {kind(volume)}")
            if volume.dim() not in (3, 4) or volume.dim() != first.dim():
                raise ValueError(
                    "VolumeStore: volumes must all be (C, *S) with 2 or all with 3 space axes; "
                    f"got {tuple(first.shape)} and {tuple(volume.shape)}"
                )
            if volume.dtype != first.dtype or volume.shape[0] != first.shape[0]:
                raise ValueError(
                    "VolumeStore: volumes must have one dtype and number of channels; got "
                    f"{first.dtype} with {first.shape[0]} and {volume.dtype} with {volume.shape[0]}"
                )
        device = first.device if device is None else torch.device(device)
        self.channels: int = first.shape[0]
        self.axes: int = first.dim() - 1
        self.shapes: list[tuple[int, ...]] = [tuple(v.shape[1:]) for v in volumes]
        #: All voxels, one volume after the other.
        self.buffer = torch.cat([v.to(device).flatten() for v in volumes])
        #: (V, 1 + d) int64: offset in the buffer and shape of each volume.
        self.table = _table([v.numel() for v in volumes], self.shapes, device)

    def __len__(self) -> int:
        return len(self.shapes)

    def __repr__(self) -> str:
        """How many volumes, of what kind, and where."""
        dtype, mib = str(self.dtype).removeprefix("torch."), self.buffer.nbytes / 2**20
        return (
            f"VolumeStore({len(self)} volumes, {self.axes}-D, {self.channels} channel"
            f"{'' if self.channels == 1 else 's'}, {dtype}, {mib:.3g} MiB on {self.buffer.device})"
        )

    @property
    def dtype(self) -> torch.dtype:
        """Voxel dtype."""
        return self.buffer.dtype


def _table(counts: list[int], shapes: list[tuple[int, ...]], device: torch.device) -> Tensor:
    offsets = accumulate(counts, initial=0)
    rows = [(offset, *shape) for offset, shape in zip(offsets, shapes, strict=False)]
    return torch.tensor(rows, dtype=torch.int64, device=device)


def full_table(table: Tensor, shape: Sequence[int], channels: int, numel: int) -> Tensor:
    """The table of volumes with a table, or of those of one shape in ``numel`` voxels."""
    if not len(shape):
        return table
    each = channels * torch.Size(shape).numel()
    count = numel // each if each else 0
    columns = [torch.arange(count, device=table.device) * each]
    columns += [torch.full((count,), n, device=table.device) for n in shape]
    return torch.stack(columns, 1)


class Packed:
    """The buffer, and table or shape, that kernels read, from any of the forms that users pass.

    Volumes of one tensor have an empty table and one ``shape``: making a table would take longer
    than many ops do on a GPU.
    """

    shape: Sequence[int]

    def __init__(
        self,
        op: str,
        volumes: Tensor | Sequence[Tensor] | VolumeStore,
        axes: int,
        positions: str = "start_vox",  # the argument that has a column per axis
    ):
        if isinstance(volumes, Tensor):
            self._pack_dense(op, volumes, axes, positions)
            return
        store = volumes if isinstance(volumes, VolumeStore) else VolumeStore(volumes)
        if store.axes != axes:
            raise ValueError(
                f"{op}: {positions} must have one column per space axis of the volumes "
                f"({store.axes}); got {axes}"
            )
        self.buffer, self.table, self.shape = store.buffer, store.table, ()
        self.channels, self.count = store.channels, len(store)

    def _pack_dense(self, op: str, volumes: Tensor, axes: int, positions: str) -> None:
        if volumes.is_complex():
            raise TypeError(f"{op}: volumes must be real; got {volumes.dtype}")
        if volumes.dim() not in (axes + 1, axes + 2):
            raise ValueError(
                f"{op}: volumes must be (C, *S) or (V, C, *S) with {axes} space axes, as many as "
                f"{positions} has columns; got {tuple(volumes.shape)}"
            )
        batch = volumes if volumes.dim() == axes + 2 else volumes[None]
        self.buffer = batch.reshape(-1)
        self.count, self.channels = batch.shape[:2]
        self.shape = batch.shape[2:]
        self.table = torch.empty(0, 1 + axes, dtype=torch.int64, device=volumes.device)
