"""Is an op worth it in your pipeline? Measure it at your sizes against PyTorch and torch.compile.

``python examples/benchmark_an_op.py [BATCH SIDE]`` times the random rotation and scaling of a batch
of slices, forward and backward. Add your own step to ``variants``.
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torch.utils.benchmark import Timer

from cmrfast.ops import affine_sample, backends


def plain(images: Tensor, theta: Tensor) -> Tensor:
    """The step as many pipelines write it."""
    grid = affine_grid(theta, list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="border", align_corners=False)


def ours(images: Tensor, theta: Tensor) -> Tensor:
    """The same step with one op."""
    return affine_sample(images, theta, padding="border")


def variants(compiled: bool) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The functions to compare; the first is the baseline."""
    functions = {"PyTorch": plain, "cmrfast": ours}
    if compiled:
        functions["PyTorch, compiled"] = torch.compile(plain)
        functions["cmrfast, compiled"] = torch.compile(ours)
    return functions


def step(variant: Callable[[Tensor, Tensor], Tensor], images: Tensor, theta: Tensor) -> Tensor:
    """Run forward and backward, and return the gradient of the images."""
    variant(images, theta).square().mean().backward()
    gradient, images.grad = images.grad, None
    assert gradient is not None
    return gradient


def main(batch: int = 16, side: int = 160, *, compiled: bool = True, seconds: float = 1.0) -> None:
    """Check that all variants agree, then time them."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kernel = backends()["affine_sample"][device]
    threads = torch.get_num_threads()
    print(f"{batch} x {side} x {side} on {device}, {threads} threads, {kernel} kernel")
    torch.manual_seed(0)
    images = torch.rand(batch, 1, side, side, device=device, requires_grad=True)
    angle, zoom = torch.rand(batch) - 0.5, 0.9 + 0.2 * torch.rand(batch)
    cos, sin, zero = zoom * angle.cos(), zoom * angle.sin(), torch.zeros(batch)
    theta = torch.stack((cos, -sin, zero, sin, cos, zero), 1).view(batch, 2, 3).to(device)
    expected, baseline = step(plain, images, theta), 0.0
    for name, variant in variants(compiled).items():
        torch.testing.assert_close(step(variant, images, theta), expected, rtol=1e-4, atol=1e-6)
        timer = Timer(
            "step(variant, images, theta)",
            globals={"step": step, "variant": variant, "images": images, "theta": theta},
            num_threads=threads,
        )
        median = timer.blocked_autorange(min_run_time=seconds).median
        baseline = baseline or median
        print(f"{name:<20}{1e3 * median:9.2f} ms {baseline / median:6.1f} x")


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
