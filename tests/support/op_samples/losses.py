"""Samples of the ops under the losses: sums of Dice and cross-entropy, NT-Xent."""

import torch

from tests.support.op_samples.registry import samples_of
from tests.support.op_samples.tensors import normal


@samples_of("dice_ce_sums")
def dice_ce_sums(device, dtype):
    for activation in (0, 1, 2):
        for batch, classes, n in ((2, 3, 37), (1, 1, 1), (2, 2, 0), (3, 4, 701)):
            logits = normal(batch, classes, n, device=device, dtype=dtype)
            if activation == 2:
                logits = logits.sigmoid()
            labels = torch.randint(0, classes, (batch, n))
            labels[:, ::5] = -100
            for kind in (torch.uint8, torch.int16, torch.int32, torch.int64):
                ignored = labels if kind != torch.uint8 else labels.abs()
                yield logits, ignored.to(kind).to(device), activation, -100, 1e-4, True
            masks = torch.rand(batch, classes, n)
            yield logits, (masks > 0.5).to(device), activation, -100, 1e-4, True
            yield logits, (masks > 0.5).to(torch.uint8).to(device), activation, 255, 1e-4, True
            yield logits, masks.to(dtype).to(device), activation, -100, 1e-4, True
            masks[:, :, ::3] = -1
            yield logits, masks.to(device), activation, -1, 1e-4, True
    yield 1e4 * logits, labels.to(device), 0, -100, 1e-4, True
    yield 1e4 * logits, labels.to(device), 1, -100, 1e-4, True
    yield logits, labels.to(device), 1, -100, 1e-4, False


@samples_of("dice_ce_sums_backward")
def dice_ce_sums_backward(device, dtype):
    for logits, *others, _ in dice_ce_sums(device, dtype):
        yield normal(*logits.shape[:2], 4, device=device, dtype=dtype), logits, *others


@samples_of("dice_ce_loss")
def dice_ce_loss(device, dtype):
    for batch, classes, first in ((2, 3, 1), (1, 1, 0), (7, 4, 0), (3, 1300, 1)):
        sums = torch.rand(batch, classes, 4, dtype=torch.float64).to(dtype).to(device)
        for over in (0, 1, 2):
            yield 50 * sums, over, first, 1e-6, 1e-6, 0.9, 1.0, 0.1, -1.0
            yield sums, over, first, 2.0, 1.0, 1.0, 0.0, 0.0, 1.0
            yield sums, over, first, 1e-5, 1e-5, 0.5, 1.0, 0.5, 1000.0


@samples_of("label_faults")
def label_faults(device, dtype):
    labels = torch.randint(-2, 6, (3, 1301), device=device)
    yield labels, 4, -1
    yield labels.abs().to(torch.uint8), 4, 5
    yield labels.to(torch.int16), 3, -100
    yield labels[:, :0].int(), 3, -100


@samples_of("nt_xent")
def nt_xent(device, dtype):
    for n, m, d in ((5, 7, 3), (1, 1, 1), (33, 41, 17), (101, 130, 35)):
        anchors = normal(n, d, device=device, dtype=dtype)
        candidates = normal(m, d, device=device, dtype=dtype)
        targets = torch.randint(0, m, (n,), device=device)
        yield anchors, candidates, targets, 0.07, None, True
        yield anchors, candidates, targets, 0.5, None, False
    candidates[3] = 0
    anchors[1] = 0
    yield anchors, candidates, targets, 0.07, None, True
    for n, m, d, first, temperature in (
        (4, 4, 3, 0, 0.5),
        (17, 17, 5, 0, 0.023),
        (50, 130, 35, 70, 0.07),
    ):
        candidates = normal(m, d, device=device, dtype=dtype)
        anchors = candidates[first : first + n].clone()
        targets = (torch.arange(n, device=device) + n // 2) % n + first
        yield anchors, candidates, targets, temperature, first, True
        yield anchors, candidates, targets, 2 * temperature, first, False


@samples_of("nt_xent_symmetric")
def nt_xent_symmetric(device, dtype):
    for n, d in ((7, 3), (1, 1), (70, 17)):
        rows = normal(2, n, d, device=device, dtype=dtype)
        yield rows[0], rows[1], 0.07, True
        yield rows[0], rows[1], 0.023, True
        yield rows[0], rows[1], 0.5, False


@samples_of("nt_xent_backward")
def nt_xent_backward(device, dtype):
    rows = normal(4, 5, device=device, dtype=dtype)
    yield normal(1, device=device, dtype=dtype)[0], rows, rows, rows
