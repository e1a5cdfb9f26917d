"""Losses, forward and backward."""

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import peers
from benchmarks.workloads.workload import Workload, with_gradients
from cmrfast import losses, ops


def pairing(count: int, dtype: torch.dtype = torch.float32) -> Workload:
    """NT-Xent of count x 128 features, forward and backward."""
    a, c = (torch.randn(count, 128).to(dtype).requires_grad_() for _ in range(2))
    own = torch.arange(count)

    def plain(a: Tensor, c: Tensor) -> Tensor:
        return F.cross_entropy((F.normalize(a) @ F.normalize(c).T).float() / 0.07, own)

    variants = {
        "cmrfast": with_gradients(ops.nt_xent, a, c),
        "torch": with_gradients(plain, a, c),
        "torch.compile": with_gradients(torch.compile(plain), a, c),
        **{k: with_gradients(v, a, c) for k, v in peers.metric_learning(count).items()},
    }
    workload = Workload(
        variants, moved=count * 128 * 4 * a.element_size(), flops=6 * count * count * 128
    )
    if dtype == torch.bfloat16:
        workload.matrix_rate, workload.tolerance = (
            "matmul_bf16_gflop_s",
            5e-2,
        )  # torch rounds N x M cosines
    return workload


def dice_3d(factor: float = 1) -> Workload:
    """Batch Dice of (40, 5, 56³) logits against uint8 masks, forward and backward."""
    shape = (max(1, int(40 * factor)), 5, 56, 56, 56)
    logits = torch.randn(shape, requires_grad=True)
    target = (torch.rand(shape) < 0.1).to(torch.uint8)

    def plain(logits: Tensor) -> Tensor:
        p, t = logits.sigmoid(), target.float()
        return -2 * (1e-5 + (p * t).sum()) / (1e-5 + (p + t).sum())

    variants = {
        "cmrfast": with_gradients(lambda x: losses.batch_dice_loss(x, target), logits),
        "torch": with_gradients(plain, logits),
        "torch.compile": with_gradients(torch.compile(plain), logits),
        **{k: with_gradients(v, logits) for k, v in peers.monai_batch_dice(target).items()},
    }
    n = logits.numel()
    return Workload(variants, moved=n * (5 + 5 + 4), fresh=4 * n)


def dice_2d(factor: float = 1) -> Workload:
    """Dice + cross entropy of (40, 4, 224²) logits against labels, forward and backward."""
    batch = max(1, int(40 * factor))
    logits = torch.randn(batch, 4, 224, 224, requires_grad=True)
    labels = torch.randint(0, 4, (batch, 224, 224))

    def plain(logits: Tensor) -> Tensor:
        p = logits.softmax(1)[:, 1:]
        t = F.one_hot(labels, 4).movedim(-1, 1)[:, 1:].float()
        dice = (2 * (p * t).sum((2, 3)) + 1e-6) / (p.sum((2, 3)) + t.sum((2, 3)) + 1e-6)
        return F.cross_entropy(logits, labels) + 1 - dice.mean()

    variants = {
        "cmrfast": with_gradients(lambda x: losses.dice_ce_loss(x, labels), logits),
        "torch": with_gradients(plain, logits),
        "torch.compile": with_gradients(torch.compile(plain), logits),
        **{k: with_gradients(v, logits) for k, v in peers.monai_dice_ce(labels).items()},
    }
    n = labels.numel()
    return Workload(variants, moved=n * (16 + 8 + 16 + 8 + 16), fresh=16 * n)
