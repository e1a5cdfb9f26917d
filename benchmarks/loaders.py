"""Loaders of other libraries over the same volumes in memory; empty if a library is missing.

Each is set up as its documentation says, with the options that make it fastest: no metadata, no
copies of cached data, volumes loaded in advance, one queue for an epoch.
"""

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Batch = dict[str, Tensor]
Variants = dict[str, Callable[..., list[Tensor]]]


@dataclass(frozen=True)
class Loader:
    """One library's loader.

    Args:
        epoch: returns the iterator over an epoch's batches, which is timed.
        traced: yields batches together with the origin of their samples, for verification.
    """

    epoch: Callable[[], Iterable[object]]
    traced: Callable[[], Iterator[Batch]]

    def run(self) -> list[object]:
        """Iterate over an epoch; each batch is freed after the next one, as in training."""
        last: object = None
        for batch in self.epoch():
            last = batch
        return [last]


def has(module: str) -> bool:
    """Whether a library is installed."""
    return importlib.util.find_spec(module) is not None


def torchio_patches(
    images: Sequence[Tensor], masks: Sequence[Tensor], side: int, batch: int, per_patient: int
) -> dict[str, Loader]:
    """TorchIO's Queue with its UniformSampler."""
    if not has("torchio"):
        return {}
    import torchio as tio

    subjects = [
        tio.Subject(image=tio.ScalarImage(tensor=i), label=tio.LabelMap(tensor=m), patient=n)
        for n, (i, m) in enumerate(zip(images, masks, strict=True))
    ]
    queue = tio.Queue(
        tio.SubjectsDataset(subjects),
        max_length=per_patient * len(subjects),
        samples_per_volume=per_patient,
        sampler=tio.UniformSampler(side),
    )

    def epoch() -> Iterator[dict[str, object]]:
        return iter(tio.SubjectsLoader(queue, batch_size=batch))

    def traced() -> Iterator[Batch]:
        for one in epoch():
            yield {
                "image": one["image"]["data"],
                "label": one["label"]["data"],
                "patient": torch.as_tensor(one["patient"]),
                "start": one["location"][:, :3],
            }

    return {"TorchIO Queue": Loader(epoch, traced)}


def monai_patches(
    images: Sequence[Tensor],
    masks: Sequence[Tensor],
    side: int,
    batch: int,
    per_patient: int,
    workers: int = 0,
) -> dict[str, Loader]:
    """MONAI's CacheDataset with RandSpatialCropSamplesd; every batch covers all patients."""
    if not has("monai"):
        return {}
    from monai.data import CacheDataset, DataLoader, MetaTensor, set_track_meta
    from monai.transforms import RandSpatialCropSamplesd

    samples = batch // len(images)
    crop = RandSpatialCropSamplesd(
        ["image", "label"], roi_size=(side,) * 3, num_samples=samples, random_size=False
    )

    def loader(wrap: Callable[[Tensor], Tensor], workers: int) -> Iterable[Batch]:
        data = [
            {"image": wrap(i), "label": wrap(m), "patient": torch.tensor(n)}
            for n, (i, m) in enumerate(zip(images, masks, strict=True))
        ]
        rounds = per_patient // samples
        dataset = CacheDataset(data * rounds, crop, progress=False, copy_cache=False)
        in_turn = [n for _ in range(rounds) for n in range(len(data))]
        return DataLoader(
            dataset,
            batch_size=len(data),
            sampler=in_turn,
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    plain = loader(lambda x: x, workers)

    def traced() -> Iterator[Batch]:
        set_track_meta(True)
        try:
            for one in loader(MetaTensor, 0):
                start = torch.stack([affine[:3, 3] for affine in one["image"].affine])
                yield {
                    "image": one["image"].as_tensor(),
                    "label": one["label"].as_tensor(),
                    "patient": one["patient"],
                    "start": start.round().long(),
                }
        finally:
            set_track_meta(False)

    set_track_meta(False)
    name = "MONAI CacheDataset" + (f", {workers} workers" if workers else "")
    return {name: Loader(lambda: plain, traced)}


def torchio_slices(images: Tensor, labels: Tensor, batch: int) -> dict[str, Loader]:
    """TorchIO's RandomAffine (rotation, scale, translation; it has no shear), slice by slice."""
    if not has("torchio"):
        return {}
    import torchio as tio

    subjects = [
        tio.Subject(
            image=tio.ScalarImage(tensor=i[..., None]), label=tio.LabelMap(tensor=m[..., None])
        )
        for i, m in zip(images, labels, strict=True)
    ]
    shift = 0.1 * images.shape[-1]
    warp = tio.RandomAffine(
        scales=(0.9, 1.1, 0.9, 1.1, 1, 1),
        degrees=(0, 0, 20),
        translation=(shift, shift, 0),
        default_pad_value=0,
    )
    dataset = tio.SubjectsDataset(subjects, warp)

    def epoch() -> Iterable[object]:
        return tio.SubjectsLoader(dataset, batch_size=batch, shuffle=True)

    def traced() -> Iterator[Batch]:
        for n, subject in enumerate(subjects):
            warped = warp(subject)
            drawn = warped.history[-1]
            yield {
                "image": warped["image"].data[..., 0],
                "label": warped["label"].data[..., 0],
                "sample": torch.tensor(n),
                "theta": _theta_of_torchio(drawn, images.shape[-2:]),
            }

    return {"TorchIO RandomAffine": Loader(epoch, traced)}


def _theta_of_torchio(drawn: object, shape: Sequence[int]) -> Tensor:
    """theta of a RandomAffine, which rotates about the centre, shifts, then scales, inverted."""
    angle = np.radians(drawn.degrees[2])
    back = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    matrix = torch.from_numpy(back / np.array(drawn.scales[:2]))
    offset = torch.from_numpy(-back @ np.array(drawn.translation[:2]))
    return theta_from_centred(matrix, offset, shape)


def theta_from_centred(matrix: Tensor, offset: Tensor, shape: Sequence[int]) -> Tensor:
    """Convert a map in voxels about the centre, output to input, to theta of ``affine_sample``."""
    size = torch.tensor(shape, dtype=torch.float64)
    matrix = (matrix.double() * size / size[:, None]).flip(0, 1)
    return torch.cat((matrix, (2 * offset.double() / size).flip(0)[:, None]), 1).float()


def monai_slices(images: Tensor, labels: Tensor, batch: int, workers: int = 0) -> dict[str, Loader]:
    """MONAI's CacheDataset with RandAffined, slice by slice."""
    if not has("monai"):
        return {}
    from monai.data import CacheDataset, DataLoader, set_track_meta
    from monai.transforms import RandAffined

    shift = 0.1 * images.shape[-1]
    warp = RandAffined(
        ["image", "label"],
        prob=1.0,
        rotate_range=np.radians(20),
        shear_range=(0.0, np.tan(np.radians(10))),
        translate_range=(shift, shift),
        scale_range=(0.1, 0.1),
        mode=("bilinear", "nearest"),
        padding_mode="zeros",
        cache_grid=True,
        spatial_size=tuple(images.shape[-2:]),
    )
    data = [{"image": i, "label": m} for i, m in zip(images, labels, strict=True)]
    set_track_meta(False)
    dataset = CacheDataset(data, warp, progress=False, copy_cache=False)
    loader = DataLoader(
        dataset,
        batch_size=batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )

    def traced() -> Iterator[Batch]:
        for n, item in enumerate(data):
            warped = warp(item)
            matrix = torch.as_tensor(warp.rand_affine.rand_affine_grid.get_transformation_matrix())
            yield {
                "image": warped["image"],
                "label": warped["label"],
                "sample": torch.tensor(n),
                "theta": theta_from_centred(matrix[:2, :2], matrix[:2, 2], images.shape[-2:]),
            }

    name = "MONAI RandAffined" + (f", {workers} workers" if workers else "")
    return {name: Loader(lambda: loader, traced)}


def readers(path: Path) -> dict[str, Callable[[], list[Tensor]]]:
    """Read an image as a tensor (C, I, J, K) in its stored dtype, by library."""
    variants: dict[str, Callable[[], list[Tensor]]] = {}
    if has("nibabel"):
        import nibabel

        def with_nibabel() -> list[Tensor]:
            return [torch.from_numpy(np.asanyarray(nibabel.load(path).dataobj))[None]]

        variants["nibabel"] = with_nibabel
    if has("SimpleITK"):
        import SimpleITK as sitk  # noqa: N813

        def with_itk() -> list[Tensor]:
            array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
            return [torch.from_numpy(array).permute(2, 1, 0)[None]]

        variants["SimpleITK"] = with_itk
    return variants
