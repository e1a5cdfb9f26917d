"""The main ops of cmrfast on random FLAIR volumes and short-axis slices, compared with PyTorch.

``python benchmarks/showcase.py`` takes about half a minute on two cores. Each line is one job of a
cardiac MR or MS lesion pipeline: it checks that plain PyTorch gives the same result and prints how
much faster the op is on this machine.
"""

import time
from collections.abc import Callable

import torch
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, normalize

from cmrfast import losses, ops


def report(job: str, ours: Callable[[], torch.Tensor], torch_only: Callable[[], torch.Tensor]):
    """Check that both variants agree, then print their median times over five interleaved runs."""
    error = (ours() - torch_only()).abs().max().item()
    assert error < 1e-2, f"{job}: differs from PyTorch by {error}"
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(5):
        for variant, record in zip((ours, torch_only), times, strict=True):
            start = time.perf_counter()
            variant()
            record.append(1e3 * (time.perf_counter() - start))
    fast, slow = (sorted(t)[2] for t in times)
    print(f"{job:<52} {fast:8.1f} ms {slow:9.1f} ms {slow / fast:6.1f} x   {error:.0e}")


def main() -> None:
    """Run the five jobs."""
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} threads; kernels:", ops.backends()["affine_sample"]["cpu"])
    print(f"{'job':<52} {'cmrfast':>11} {'PyTorch':>12} {'faster':>8}   largest difference")

    flair = torch.rand(2, 160, 192, 160)  # two time points on one grid
    start = torch.stack([torch.randint(0, n - 56, (24,)) for n in flair.shape[1:]], dim=1)

    def slices() -> torch.Tensor:
        cut = [flair[:, i : i + 56, j : j + 56, k : k + 56] for i, j, k in start.tolist()]
        return (torch.stack(cut) - 0.5) * 2

    report(
        "24 normalised 56^3 patches from a FLAIR pair",
        lambda: ops.extract_patches(flair, start, (56, 56, 56), shift=0.5, scale=2.0),
        slices,
    )

    grid = ops.cover_starts(flair.shape[1:], (56, 56, 56), overlap=14)
    patches = ops.extract_patches(flair[:1], grid, (56, 56, 56))

    def add_each() -> torch.Tensor:
        total, count = torch.zeros(flair[:1].shape), torch.zeros(flair[:1].shape)
        for patch, (i, j, k) in zip(patches, grid.tolist(), strict=True):
            total[:, i : i + 56, j : j + 56, k : k + 56] += patch
            count[:, i : i + 56, j : j + 56, k : k + 56] += 1
        return total / count

    report(
        f"averaging {len(grid)} overlapping patches into a volume",
        lambda: ops.merge_patches(patches, grid, flair.shape[1:]),
        add_each,
    )

    slices_2d = torch.rand(16, 4, 224, 224)
    theta = torch.tensor([[0.9, 0.2, 0.05], [-0.2, 0.9, -0.1]]).expand(16, 2, 3).contiguous()
    report(
        "rotating and scaling 16 short-axis slices",
        lambda: ops.affine_sample(slices_2d, theta),
        lambda: grid_sample(
            slices_2d,
            affine_grid(theta, list(slices_2d.shape), align_corners=False),
            align_corners=False,
        ),
    )

    logits, labels = torch.randn(16, 4, 224, 224), torch.randint(0, 4, (16, 224, 224))

    def torch_loss() -> torch.Tensor:
        probs = logits.softmax(1)[:, 1:]
        masks = torch.nn.functional.one_hot(labels, 4).movedim(-1, 1)[:, 1:]
        overlap = (probs * masks).sum((2, 3))
        dice = (2 * overlap + 1e-6) / (probs.sum((2, 3)) + masks.sum((2, 3)) + 1e-6)
        return cross_entropy(logits, labels) + 1 - dice.mean()

    report(
        "Dice + cross entropy of 16 slices, 4 classes",
        lambda: losses.dice_ce_loss(logits, labels),
        torch_loss,
    )

    t1, lge = torch.randn(2048, 128), torch.randn(2048, 128)
    report(
        "contrastive pairing of 2048 T1 and LGE features",
        lambda: ops.nt_xent(t1, lge),
        lambda: cross_entropy(normalize(t1) @ normalize(lge).T / 0.07, torch.arange(2048)),
    )


if __name__ == "__main__":
    main()
