"""Is an op worth it in your pipeline? Measured at your sizes, beside PyTorch and torch.compile.

``python examples/benchmark_an_op.py [BATCH SIDE]``: random rotation and scaling of a batch of
slices, forward and backward. Put your own step into ``ways``.
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torch.utils.benchmark import Timer

from cmrfast.ops import affine_sample, backends


def plain(images: Tensor, theta: Tensor) -> Tensor:
    """The step as it is in many pipelines."""
    grid = affine_grid(theta, list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="border", align_corners=False)


def ours(images: Tensor, theta: Tensor) -> Tensor:
    """The same with one op."""
    return affine_sample(images, theta, padding="border")


def ways(compiled: bool) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Everything that shall be compared; the first is what the others are held against."""
    found = {"PyTorch": plain, "cmrfast": ours}
    if compiled:
        found["PyTorch, compiled"] = torch.compile(plain)
        found["cmrfast, compiled"] = torch.compile(ours)
    return found


def step(way: Callable[[Tensor, Tensor], Tensor], images: Tensor, theta: Tensor) -> Tensor:
    """Forward and backward; the gradient with respect to the images."""
    way(images, theta).square().mean().backward()
    gradient, images.grad = images.grad, None
    assert gradient is not None
    return gradient


def main(batch: int = 16, side: int = 160, *, compiled: bool = True, seconds: float = 1.0) -> None:
    """Check that all ways agree, then time them."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kernel = backends()["affine_sample"][device]
    threads = torch.get_num_threads()
    print(f"{batch} x {side} x {side} on {device}, {threads} threads, {kernel} kernel")
    torch.manual_seed(0)
    images = torch.rand(batch, 1, side, side, device=device, requires_grad=True)
    turn, zoom = torch.rand(batch) - 0.5, 0.9 + 0.2 * torch.rand(batch)
    cos, sin, none = zoom * turn.cos(), zoom * turn.sin(), torch.zeros(batch)
    theta = torch.stack((cos, -sin, none, sin, cos, none), 1).view(batch, 2, 3).to(device)
    expected, base = step(plain, images, theta), 0.0
    for name, way in ways(compiled).items():
        torch.testing.assert_close(step(way, images, theta), expected, rtol=1e-4, atol=1e-6)
        timer = Timer(
            "step(way, images, theta)",
            globals={"step": step, "way": way, "images": images, "theta": theta},
            num_threads=threads,
        )
        median = timer.blocked_autorange(min_run_time=seconds).median
        base = base or median
        print(f"{name:<20}{1e3 * median:9.2f} ms {base / median:6.1f} x")


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
