"""Alternatives from other libraries; a function returns an empty dict if its library is missing."""

import importlib.util
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Variants = dict[str, Callable[..., object]]


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def torch_windows(
    volumes: Tensor, start: Tensor, s: int, flips: Tensor, index: Tensor | None = None
) -> Tensor:
    """Cut windows of side s with one index into an unfolded view, then flip axis by axis."""
    axes = volumes.dim() - 2
    view = volumes.movedim(1, -1)
    for a in range(axes):
        view = view.unfold(1 + a, s, 1)
    windows = view[start.new_zeros(len(start)) if index is None else index, *start.T]
    for a in range(axes):
        flipped = flips[:, a]
        windows[flipped] = windows[flipped].flip(2 + a)
    return windows


def metric_learning(count: int) -> Variants:
    """NT-Xent of pytorch-metric-learning, up to 512 rows: above, it needs gigabytes."""
    if not _has("pytorch_metric_learning") or count > 512:
        return {}
    from pytorch_metric_learning.losses import NTXentLoss

    # With the same labels object for both, the library would compare one set with itself.
    loss, own, other = NTXentLoss(temperature=0.07), torch.arange(count), torch.arange(count)
    return {"pytorch-metric-learning": lambda a, c: loss(a, own, ref_emb=c, ref_labels=other)}


def monai_batch_dice(target: Tensor) -> Variants:
    """MONAI's batch Dice with sigmoid; classes are flattened into space for a single ratio."""
    if not _has("monai"):
        return {}
    from monai.losses import DiceLoss

    loss = DiceLoss(sigmoid=True, batch=True, smooth_nr=2e-5, smooth_dr=1e-5)
    flat = target.flatten(1)[:, None]
    return {"MONAI DiceLoss": lambda logits: loss(logits.flatten(1)[:, None], flat)}


def monai_dice_ce(labels: Tensor) -> Variants:
    """MONAI's Dice + cross entropy per image, excluding the background."""
    if not _has("monai"):
        return {}
    from monai.losses import DiceCELoss

    loss = DiceCELoss(
        softmax=True, to_onehot_y=True, include_background=False, smooth_nr=1e-6, smooth_dr=1e-6
    )
    return {"MONAI DiceCELoss": lambda logits: loss(logits, labels[:, None])}


def kornia_affine() -> Variants:
    """kornia's homography warp with the same normalised matrix."""
    if not _has("kornia"):
        return {}
    from kornia.geometry.transform import homography_warp

    def warp(images: Tensor, theta: Tensor) -> Tensor:
        last = theta.new_tensor([0.0, 0.0, 1.0]).expand(len(theta), 1, 3)
        n = images.shape[-1]
        # kornia's normalised grid runs from centre to centre, torch's from edge to edge.
        to_edges = torch.diag(theta.new_tensor([(n - 1) / n, (n - 1) / n, 1.0]))
        matrix = to_edges.inverse() @ torch.cat((theta, last), 1) @ to_edges
        return homography_warp(images, matrix, images.shape[-2:], align_corners=True)

    return {"kornia": warp}


def batchgenerators_spatial(
    volume: Tensor, labels: Tensor, angles: Tensor, zooms: Tensor, size: Sequence[int]
) -> Variants:
    """nnU-Net's spatial transform about the middle of a volume, with given angles and zooms."""
    if not _has("batchgeneratorsv2"):
        return {}
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

    transforms = [
        SpatialTransform(
            tuple(size), 0, random_crop=False, mode_seg="nearest",
            p_rotation=1, rotation=lambda image, dim, turn=turn: turn[dim],
            p_scaling=1, scaling=lambda image, dim, zoom=zoom: zoom[dim],
        )
        for turn, zoom in zip(angles.tolist(), zooms.tolist(), strict=True)
    ]  # fmt: skip

    def run() -> list[Tensor]:
        pairs = [transform(image=volume, segmentation=labels) for transform in transforms]
        return [torch.stack([p[name] for p in pairs]) for name in ("image", "segmentation")]

    return {"batchgeneratorsv2": run}


def itk_resample(volume: Tensor, to_world_from_vox: Tensor, to_shape: Sequence[int]) -> Variants:
    """SimpleITK's linear resampling from a grid of 1 mm."""
    if not _has("SimpleITK") or volume.is_cuda:
        return {}
    import SimpleITK as sitk  # noqa: N813

    image = sitk.GetImageFromArray(volume[0].permute(2, 1, 0).contiguous().numpy())
    linear = to_world_from_vox[:3, :3]
    spacing = torch.linalg.vector_norm(linear, dim=0)
    filter_ = sitk.ResampleImageFilter()
    filter_.SetSize([int(n) for n in to_shape])
    filter_.SetOutputSpacing(spacing.tolist())
    filter_.SetOutputDirection((linear / spacing).flatten().tolist())
    filter_.SetOutputOrigin(to_world_from_vox[:3, 3].tolist())
    filter_.SetInterpolator(sitk.sitkLinear)

    kept = []  # keeps the last image alive: the array below is a view of it

    def run() -> list[Tensor]:
        kept[:] = [filter_.Execute(image)]
        array = sitk.GetArrayViewFromImage(kept[0])
        with warnings.catch_warnings():  # torch warns of a read-only array, which is fine here
            warnings.simplefilter("ignore")
            return [torch.from_numpy(array).permute(2, 1, 0)[None]]

    return {"SimpleITK": run}


def scipy_resample(volume: Tensor, to_world_from_vox: Tensor, to_shape: Sequence[int]) -> Variants:
    """scipy's affine_transform from a grid of 1 mm, cut off half a voxel outside as in ITK."""
    if not _has("scipy") or volume.is_cuda:
        return {}
    from scipy.ndimage import affine_transform

    voxels, matrix = volume[0].numpy(), to_world_from_vox.numpy()
    ones = torch.ones_like(volume[0]).numpy()
    inside = affine_transform(ones, matrix, output_shape=to_shape, order=0, mode="grid-constant")

    def run() -> list[Tensor]:
        out = affine_transform(voxels, matrix, output_shape=to_shape, order=1, mode="nearest")
        return [torch.from_numpy(out * inside)[None]]

    return {"scipy": run}


def torch_resample(volume: Tensor, to_world_from_vox: Tensor, to_shape: Sequence[int]) -> Variants:
    """torch's grid_sample, with the matrix in normalised coordinates."""
    n = torch.tensor([float(s) for s in volume.shape[1:]], dtype=torch.float64)
    m = torch.tensor([float(s) for s in to_shape], dtype=torch.float64)
    linear = to_world_from_vox[:3, :3] * m / n[:, None]
    offset = (to_world_from_vox[:3, :3] @ (m - 1) / 2 + to_world_from_vox[:3, 3] + 0.5) * 2 / n - 1
    theta = torch.cat((linear.flip(0, 1), offset.flip(0)[:, None]), 1).float()[None]

    def run(volume: Tensor) -> list[Tensor]:
        grid = F.affine_grid(theta, [1, 1, *to_shape], align_corners=False)
        sampled = F.grid_sample(volume[None], grid, align_corners=False, padding_mode="border")
        inside = (grid.abs() < 1).all(-1)  # the border rule of resample
        return [sampled[0] * inside]

    compiled = torch.compile(run)
    return {"torch": lambda: run(volume), "torch.compile": lambda: compiled(volume)}


def scipy_zoom_argmax(logits: Tensor, to_shape: Sequence[int]) -> Variants:
    """scipy's zoom of each class between the outer edges, which nnU-Net's default comes down to."""
    if not _has("scipy") or logits.is_cuda:
        return {}
    from scipy.ndimage import zoom

    factors = [m / n for m, n in zip(to_shape, logits.shape[1:], strict=True)]
    options = {"order": 1, "mode": "nearest", "grid_mode": True}

    def run() -> list[Tensor]:
        resampled = [torch.from_numpy(zoom(x.numpy(), factors, **options)) for x in logits]
        return [torch.stack(resampled).argmax(0).short()]

    return {"scipy zoom": run}


def batchgenerators_intensity(steps: dict[str, float]) -> Variants:
    """batchgeneratorsv2's transforms with fixed values, of an image (C, *S), in nnU-Net's order."""
    if not (_has("batchgeneratorsv2") and _has("skimage")):  # which it imports
        return {}
    from batchgeneratorsv2.transforms.intensity import brightness, contrast, gamma, gaussian_noise
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform

    transforms = [
        gaussian_noise.GaussianNoiseTransform(steps["noise_sd"]),
        GaussianBlurTransform(steps["blur_sd_vox"]),
        brightness.MultiplicativeBrightnessTransform(steps["gain"], synchronize_channels=False),
        contrast.ContrastTransform(steps["contrast"], True, synchronize_channels=False),
        SimulateLowResolutionTransform(steps["low_res"], False, True, None),
        gamma.GammaTransform(steps["gamma_inverted"], 1, False, 1, 1),
        gamma.GammaTransform(steps["gamma"], 0, False, 1, 1),
    ]

    def augment(image: Tensor) -> Tensor:
        image = image.clone()  # transforms work in place
        for transform in transforms:
            image = transform(image=image)["image"]
        return image

    return {"batchgeneratorsv2": augment}


def torchio_aggregate(patches: Tensor, start: Tensor, shape: Sequence[int]) -> Variants:
    """TorchIO's GridAggregator, averaging overlaps."""
    if not _has("torchio") or patches.is_cuda:
        return {}
    import torchio as tio

    size = patches.shape[2:]
    subject = tio.Subject(image=tio.ScalarImage(tensor=torch.zeros(1, *shape)))
    sampler = tio.GridSampler(subject, size, 14)
    locations = torch.cat((start, start + torch.tensor(size)), 1)

    def run() -> list[Tensor]:
        aggregator = tio.GridAggregator(sampler, overlap_mode="average")
        aggregator.add_batch(patches, locations)
        return [aggregator.get_output_tensor()]

    return {"TorchIO": run}


def monai_sliding_window(patches: Tensor, shape: Sequence[int]) -> Variants:
    """MONAI's sliding window over a network that returns the given patches, four at a time."""
    if not _has("monai"):
        return {}
    from monai.inferers import sliding_window_inference

    volume, size = torch.zeros(1, 1, *shape), patches.shape[2:]

    def run() -> list[Tensor]:
        batches = iter(patches.split(4))
        merged = sliding_window_inference(
            volume, size, 4, lambda windows: next(batches), overlap=14 / 56
        )
        return [merged[0]]

    return {"MONAI sliding window": run}
