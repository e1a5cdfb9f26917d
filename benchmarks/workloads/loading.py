"""Loading: from volumes in memory to batches, and from files to volumes.

Each loader draws its own patches and maps, so results cannot be compared directly. Instead, every
batch of another library is compared with what our ops cut or warp at the position it reports.
"""

import gzip
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import loaders
from benchmarks.loaders import Batch, Loader
from benchmarks.workloads.workload import Workload
from cmrfast.data.augment import Ranges, random_thetas
from cmrfast.data.nifti import read_nifti, write_nifti
from cmrfast.data.phantom import write_phantoms
from cmrfast.data.prepare import z_score
from cmrfast.data.random import order
from cmrfast.methods.new_lesions.sampling import LesionSampler
from cmrfast.ops import VolumeStore, affine_sample, extract_patches, warp_pair

SIDE, BATCH, PATIENTS, PER_PATIENT = 56, 40, 4, 20
_RANGES = Ranges(rotate_deg=20, scale=(0.9, 1.1), translate_share=0.1, shear_deg=10)


def patches_3d(scale: float = 1.0) -> Workload:
    """An epoch of 56³ patches of a FLAIR pair with five masks; 4 in 5 of ours are on lesions."""
    shape = [max(SIDE + 8, round(n * scale ** (1 / 3))) for n in (200, 240, 200)]
    images = [torch.rand(2, *shape) for _ in range(PATIENTS)]
    masks = [(torch.rand(5, *shape) > 0.9995).byte() for _ in range(PATIENTS)]
    sampler = LesionSampler(
        [m[0] for m in masks],
        [torch.rand(*shape) > 0.9 for _ in range(PATIENTS)],
        (SIDE,) * 3,
        per_patient=PER_PATIENT,
    )
    flair, labels = VolumeStore(images), VolumeStore(masks)
    epoch_number = 0

    def batches() -> Iterator[list[Tensor]]:
        nonlocal epoch_number
        epoch_number += 1
        for samples in order(0, epoch_number, len(sampler)).split(BATCH):
            at = sampler.windows(epoch_number, samples)
            yield [
                extract_patches(
                    store, at.start_vox, sampler.size, volume_index=at.volume_index, dtype=dtype
                )
                for store, dtype in ((flair, torch.float32), (labels, torch.uint8))
            ]

    peers = {
        **loaders.torchio_patches(images, masks, SIDE, BATCH, PER_PATIENT),
        **loaders.monai_patches(images, masks, SIDE, BATCH, PER_PATIENT),
        **loaders.monai_patches(images, masks, SIDE, BATCH, PER_PATIENT, workers=2),
    }

    def verify_batch(batch: Batch) -> None:
        for store, key in ((flair, "image"), (labels, "label")):
            start, index = batch["start"].long(), batch["patient"].long()
            ours = extract_patches(store, start, (SIDE,) * 3, volume_index=index, dtype=store.dtype)
            torch.testing.assert_close(batch[key], ours, rtol=0, atol=0)

    voxels = PATIENTS * PER_PATIENT * SIDE**3 * (2 * 4 + 5)
    return _loading_workload(batches, peers, verify_batch, voxels)


def slices_2d(scale: float = 1.0) -> Workload:
    """An epoch of LGE slices and their two masks, each rotated, scaled, sheared and shifted."""
    count, side = max(2, round(80 * scale)), 224
    images, labels = torch.rand(count, 1, side, side), _discs(count, side)
    epoch_number = 0

    def batches() -> Iterator[list[Tensor]]:
        nonlocal epoch_number
        epoch_number += 1
        for samples in order(0, epoch_number, count).split(BATCH):
            theta, _ = random_thetas(_RANGES, (side, side), 0, epoch_number, samples)
            yield list(warp_pair(images[samples], labels[samples], theta))

    peers = {
        **loaders.torchio_slices(images, labels, BATCH),
        **loaders.monai_slices(images, labels, BATCH),
        **loaders.monai_slices(images, labels, BATCH, workers=2),
    }

    def verify_batch(batch: Batch) -> None:
        chosen, theta = batch["sample"].long(), batch["theta"][None]
        image, inside, label = (
            affine_sample(x[None].float(), theta, mode=mode)[0]
            for x, mode in (
                (images[chosen], "linear"),
                (torch.ones(1, side, side), "linear"),
                (labels[chosen], "nearest"),
            )
        )
        # Libraries differ within a voxel of the border, and in ties.
        interior = inside[0] > 0.9999
        assert interior.float().mean() > 0.5
        torch.testing.assert_close(
            batch["image"][:, interior], image[:, interior], rtol=0, atol=2e-3
        )
        assert (batch["label"] != label)[:, interior].float().mean() < 1e-3

    return _loading_workload(batches, peers, verify_batch, 2 * count * side * side * (4 + 2))


def _loading_workload(
    batches: Callable[[], Iterator[list[Tensor]]],
    peers: dict[str, Loader],
    verify_batch: Callable[[Batch], None],
    moved: int,
) -> Workload:
    def epoch() -> list[object]:
        last: object = None
        for batch in batches():
            last = batch
        return [last]

    def verify() -> None:
        for loader in peers.values():
            for batch in islice(loader.traced(), 8):
                verify_batch(batch)

    variants = {"cmrfast": epoch} | {name: loader.run for name, loader in peers.items()}
    return Workload(variants, moved=moved, fresh=moved // 2, verify=verify)


def _discs(count: int, side: int) -> Tensor:
    """Two masks per slice: a disc, and a smaller disc inside it."""
    i, j = torch.arange(side) - torch.rand(2, count, 1) * 40 - side / 2 + 20
    away = (i[:, :, None] ** 2 + j[:, None, :] ** 2).sqrt()
    return torch.stack((away < 50, away < 20), 1).byte()


@cache
def _phantom(shrink: float) -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory()
    write_phantoms("msseg2", Path(folder.name) / "set", cases=1, shrink=shrink)
    return folder


def reading(kind: str, shrink: float = 1.0) -> Workload:
    """Read a phantom FLAIR (int16, or float32 as prepared) or mask, at gzip's default level."""
    folder = _phantom(shrink)
    root = Path(folder.name)
    name = "ground_truth_expert1" if kind == "mask" else "flair_time01_on_middle_space"
    volume = read_nifti(next(root.rglob(f"{name}.nii.gz")))
    if kind == "float32":
        volume = volume.with_data(z_score(volume.data))
    plain = root / f"{kind}.nii"
    write_nifti(plain, volume)
    path = root / f"{kind}.nii.gz"
    path.write_bytes(gzip.compress(plain.read_bytes(), 6, mtime=0))
    plain.unlink()  # SimpleITK reads image.nii in place of image.nii.gz if both exist

    def ours() -> list[Tensor]:
        return [read_nifti(path).data]

    size = volume.data.nbytes
    moved = path.stat().st_size + size
    return Workload(
        {"cmrfast": ours, **loaders.readers(path)}, moved=moved, fresh=size, tolerance=0
    )


#: Code in the tables -> (title, builder).
LOADING: dict[str, tuple[str, Callable[[], Workload]]] = {
    "P3": ("epoch of 80 patches of 56³: FLAIR pair, 5 masks", patches_3d),
    "S2": ("epoch of 80 slices of 224², warped with 2 masks", slices_2d),
    "RI": ("reading .nii.gz: FLAIR, int16", lambda: reading("int16")),
    "RF": ("reading .nii.gz: FLAIR, float32", lambda: reading("float32")),
    "RM": ("reading .nii.gz: lesion mask, uint8", lambda: reading("mask")),
}
