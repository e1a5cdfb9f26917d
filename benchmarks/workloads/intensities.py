"""Photometric augmentation of volumes."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import peers
from benchmarks.workloads.workload import Variant, Workload
from cmrfast import ops

#: One value of each step, in the ranges that nnU-Net draws from.
STEPS = {
    **{"noise_sd": 0.2, "blur_sd_vox": 0.75, "gain": 1.1, "contrast": 1.2},
    **{"low_res": 0.6, "gamma_inverted": 0.85, "gamma": 1.3},
}


def intensities_3d(factor: float = 1) -> Workload:
    """All steps of nnU-Net's photometric augmentation, of 8 volumes of 128³."""
    side = max(8, int(128 * factor ** (1 / 3)))
    images, sample = torch.randn(8, 1, side, side, side), torch.arange(8)

    def ours(**steps: float) -> Tensor:
        parameters = {name: images.new_full((8,), value) for name, value in steps.items()}
        return ops.augment_intensity(images, 0, sample, **parameters)

    def each(augment: Callable[..., Tensor]) -> Variant:
        return lambda: [torch.stack([augment(image) for image in images])]

    def verify() -> None:
        steps = {name: value for name, value in STEPS.items() if name != "noise_sd"}
        expected = torch.stack([_plain(image, noise=False) for image in images])
        torch.testing.assert_close(ours(**steps), expected, rtol=1e-3, atol=1e-3)
        noise = ours(noise_sd=0.2) - images
        assert abs(noise.std().item() - 0.2) < 1e-2

    variants: dict[str, Variant] = {"cmrfast": lambda: [ours(**STEPS)], "torch": each(_plain)}
    for name, augment in peers.batchgenerators_intensity(STEPS).items():
        variants[name] = each(augment)
    n = images.numel() * 4
    return Workload(variants, moved=2 * n, fresh=n, verify=verify)


def _plain(image: Tensor, noise: bool = True) -> Tensor:
    """The same of one volume (1, I, J, K), in plain torch."""
    x = image + STEPS["noise_sd"] * torch.randn_like(image) if noise else image
    radius = int(3 * STEPS["blur_sd_vox"] + 0.5)
    distance = torch.arange(-radius, radius + 1.0, device=x.device) / STEPS["blur_sd_vox"]
    weight = torch.exp(-distance.square() / 2)
    weight = weight / weight.sum()
    for axis in (1, 2, 3):
        n, kernel = x.shape[axis], weight.view(*(-1 if a == axis else 1 for a in range(4)))
        first, last = x.narrow(axis, 0, radius), x.narrow(axis, n - radius, radius)
        x = torch.cat((first.flip(axis), x, last.flip(axis)), axis)
        x = F.conv3d(x[None], kernel[None])[0]
    x = x * STEPS["gain"]
    low, high = x.aminmax()
    x = ((x - x.mean()) * STEPS["contrast"] + x.mean()).clamp(low, high)
    coarse = [round(n * STEPS["low_res"]) for n in x.shape[1:]]
    x = F.interpolate(x[None], coarse, mode="nearest-exact")
    x = F.interpolate(x, image.shape[1:], mode="trilinear")[0]
    return _gamma(-_gamma(-x, STEPS["gamma_inverted"]), STEPS["gamma"])


def _gamma(x: Tensor, exponent: float) -> Tensor:
    low, high = x.aminmax()
    y = ((x - low) / (high - low)) ** exponent
    return (y - y.mean()) / y.std() * x.std() + x.mean()
