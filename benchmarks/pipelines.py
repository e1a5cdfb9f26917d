"""MONAI pipelines for each method: random augmentation of the prepared images in memory.

They start from the same prepared images as our feeds, so that only sampling and augmentation are
compared. The ranges are those of the recipes; the random draws, and so the batches, differ.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmrfast.ops import VolumeStore

Item = dict[str, Tensor]
Make = Callable[[], dict[str, Tensor]]


def pipeline(name: str, feed: Any, config: Any, recipe: Any, batch: int) -> Make:
    """Return a function that makes batches with the same keys as those of the method's feed.

    Args:
        name: name of the method.
        feed: feed of its task; provides the images.
        config, recipe: config and recipe of the method.
        batch: samples per batch.
    """
    from monai.data import set_track_meta

    set_track_meta(False)
    return _PIPELINES[name](feed, config, recipe, batch)


def _siamese_lesion(feed: Any, config: Any, recipe: Any, batch: int) -> Make:
    from monai.transforms import Compose, RandFlipd, RandSpatialCropd

    items = [{"pair": pair} for pair in _volumes(feed.patches.store)]
    transform = Compose(
        [
            RandSpatialCropd("pair", (config.patch,) * 2, random_size=False),
            RandFlipd("pair", prob=0.5, spatial_axis=0),
            RandFlipd("pair", prob=0.5, spatial_axis=1),
        ]
    )

    def make() -> dict[str, Tensor]:
        pairs = _draw_batch(items, transform, batch)["pair"]
        return {
            "t1": pairs[:, :1],
            "lge": pairs[:, 1:],
            "labels": torch.randint(config.classes, (batch,)),
        }

    return make


def _joint_scar(feed: Any, config: Any, recipe: Any, batch: int) -> Make:
    from monai.transforms import RandAffined

    items = [{"image": i, "label": m} for i, m in zip(feed.images, feed.labels, strict=True)]
    shift = recipe.translate_share * config.image
    transform = RandAffined(
        ["image", "label"],
        prob=1.0,
        rotate_range=np.radians(recipe.rotate_deg),
        shear_range=(0.0, np.tan(np.radians(recipe.shear_deg))),
        translate_range=(shift, shift),
        scale_range=(recipe.scale[1] - 1,) * 2,
        mode=("bilinear", "nearest"),
        padding_mode="zeros",
        cache_grid=True,
        spatial_size=(config.image,) * 2,
    )

    def make() -> dict[str, Tensor]:
        samples = _draw_batch(items, transform, batch)
        myocardium, scar = samples["label"].unbind(1)
        return {"images": samples["image"], "myocardium": myocardium, "scar": scar}

    return make


def _joint_registration(feed: Any, config: Any, recipe: Any, batch: int) -> Make:
    from monai.transforms import Compose, RandAdjustContrastd, RandAffined

    keys = ("cine", "lge", "cine_labels", "lge_labels")
    modes = ("bilinear", "bilinear", "nearest", "nearest")
    items = [
        {k: x if x.dim() == 3 else x[None] for k, x in zip(keys, tensors, strict=True)}
        for tensors in zip(*(feed.pairs[k] for k in keys), strict=True)
    ]

    def warp(picked: Sequence[int], rotate_deg: float, shift_px: float) -> RandAffined:
        return RandAffined(
            [keys[i] for i in picked],
            prob=1.0,
            rotate_range=np.radians(rotate_deg),
            translate_range=(shift_px, shift_px),
            mode=[modes[i] for i in picked],
            padding_mode="zeros",
            cache_grid=True,
            spatial_size=(recipe.side,) * 2,
        )

    transform = Compose(
        [
            warp((0, 1, 2, 3), recipe.rotate_deg, recipe.shift_px),
            warp((1, 3), recipe.lge_rotate_deg, recipe.lge_shift_px),
            *(RandAdjustContrastd(k, prob=1.0, gamma=recipe.gamma) for k in ("cine", "lge")),
        ]
    )

    def make() -> dict[str, Tensor]:
        samples = _draw_batch(items, transform, batch)
        return {k: x[:, 0] if k.endswith("labels") else x for k, x in samples.items()}

    return make


def _adversarial_transfer(feed: Any, config: Any, recipe: Any, batch: int) -> Make:
    from monai.transforms import RandAffined

    low, high = (zoom - 1 for zoom in recipe.zoom)
    transform = RandAffined(
        ["images", "labels"],
        prob=recipe.copies / (1 + recipe.copies),
        rotate_range=np.radians(recipe.rotate_deg),
        shear_range=(np.sin(recipe.shear_rad), 0.0),
        scale_range=((low, high), (low, high)),
        mode=("bilinear", "nearest"),
        padding_mode="border",
        cache_grid=True,
        spatial_size=(config.size,) * 2,
    )
    crops = {}
    for prefix, source in (("", feed.true), ("pseudo_", feed.pseudo)):
        originals = torch.arange(0, len(source), 1 + recipe.copies)
        images, labels = source.batch(0, originals)
        pairs = zip(images, labels[:, None], strict=True)
        crops[prefix] = [{"images": image, "labels": label} for image, label in pairs]

    def make() -> dict[str, Tensor]:
        batches = {}
        for prefix, items in crops.items():
            samples = _draw_batch(items, transform, batch)
            batches[f"{prefix}images"] = samples["images"]
            batches[f"{prefix}labels"] = samples["labels"][:, 0]
        return batches

    return make


def _new_lesions(feed: Any, config: Any, recipe: Any, batch: int) -> Make:
    from monai.transforms import FgBgToIndicesd, RandCropByPosNegLabeld

    indices = FgBgToIndicesd("consensus")  # once for all epochs, as MONAI advises
    items = [
        indices({"images": i, "masks": m, "consensus": m[:1]})
        for i, m in zip(_volumes(feed.images), _volumes(feed.masks["masks"]), strict=True)
    ]
    crop = RandCropByPosNegLabeld(
        ["images", "masks"],
        label_key="consensus",
        spatial_size=(recipe.patch,) * 3,
        pos=recipe.on_lesion,
        neg=1 - recipe.on_lesion,
        num_samples=1,
        fg_indices_key="consensus_fg_indices",
        bg_indices_key="consensus_bg_indices",
    )

    def make() -> dict[str, Tensor]:
        samples = _draw_batch(items, lambda item: crop(item)[0], batch)
        images = samples["images"].float()
        return {"earlier": images[:, :1], "later": images[:, 1:], "masks": samples["masks"]}

    return make


def _draw_batch(
    items: Sequence[Item], transform: Callable[[Item], Any], batch: int
) -> dict[str, Tensor]:
    """Draw random items, transform each, and stack them by key."""
    samples: list[Mapping[str, Any]] = [
        transform(items[n]) for n in torch.randint(len(items), (batch,)).tolist()
    ]
    return {
        key: torch.stack([torch.as_tensor(sample[key]) for sample in samples])
        for key in samples[0]
        if not key.startswith("consensus")
    }


def _volumes(store: VolumeStore) -> list[Tensor]:
    counts = [store.channels * prod(shape) for shape in store.shapes]
    parts = store.buffer.split(counts)
    return [
        part.view(store.channels, *shape) for part, shape in zip(parts, store.shapes, strict=True)
    ]


_PIPELINES: dict[str, Callable[[Any, Any, Any, int], Make]] = {
    "siamese_lesion": _siamese_lesion,
    "joint_scar": _joint_scar,
    "joint_registration": _joint_registration,
    "new_lesions": _new_lesions,
    "adversarial_transfer": _adversarial_transfer,
}
