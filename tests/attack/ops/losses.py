"""Random calls of what losses are made of: sums of Dice and cross-entropy, NT-Xent."""

import torch
from torch import Tensor
from torch.nn import functional as F

from cmrfast import ops
from tests.attack.ops.call import Call, largest
from tests.attack.ops.make import FLOATS, INTEGERS, Make


def dice_ce_sums(make: Make) -> Call:
    batch, classes, shape = make.count(3), make.numbers.randint(1, 5), make.sizes(make.one_of(1, 3))
    logits = make.values(batch, classes, *shape, dtype=make.floating())
    activation = make.one_of("softmax", "sigmoid", "none", "softmax", "sigmoid")
    if activation == "none":
        logits = logits.sigmoid()
    ignore = make.one_of(-100, 0, 255, 156, 2**24 + 1, -(2**63), 2**63 - 1)
    labels = make.chance(0.6)
    if labels:
        dtype = make.one_of(*INTEGERS)
        target = torch.randint(classes, (batch, *shape), generator=make.generator).to(dtype)
        if make.chance(0.2):
            target = make.values(batch, *shape, dtype=dtype)
    else:
        dtype = make.one_of(*FLOATS, *INTEGERS[:5], torch.bool)
        target = make.values(*logits.shape, dtype=dtype, calm=True)
        if not dtype.is_floating_point and dtype != torch.bool:
            target = target % 2
    target = make.laid_out(target)

    def equal(logits: Tensor) -> Tensor:
        target_, wide = target.long(), logits.double()
        kept = (target_ != ignore)[:, None]
        masks = F.one_hot(target_, classes).movedim(-1, 1) * kept
        p, log_p = wide.softmax(1) * kept, wide.log_softmax(1)
        ce = torch.where(masks != 0, -log_p, 0)
        stacked = torch.stack((p * masks, p, masks.double(), ce), -1)
        sums = stacked.flatten(2, -2).sum(2)
        return sums.to(torch.promote_types(logits.dtype, torch.float32))

    known = labels and activation == "softmax" and bool(logits.isfinite().all())
    known = known and bool(((target.long() >= 0) & (target.long() < classes)).all())
    return Call(
        lambda x: ops.dice_ce_sums(x, target, activation=activation, ignore_index=ignore),
        [logits],
        equal=equal if known else None,
        size=largest(logits),
        finite=True,
    )


def nt_xent(make: Make) -> Call:
    n, m, depth = make.count(9), make.numbers.randint(1, 12), make.numbers.randint(1, 9)
    dtype = make.floating()
    symmetric = make.chance(0.2)
    negatives = make.one_of("candidates", "candidates", "both", "all")
    paired = (symmetric or negatives == "both") and make.chance(0.8)
    m = n if paired else m
    anchors, candidates = (make.values(k, depth, dtype=dtype) for k in (n, m))
    temperature = make.one_of(0.07, 0.5, 1.0, 100.0, 1e-40, 0.0)
    targets = None
    if not paired and make.chance(0.6):
        high = m if make.chance(0.1) else m - 1
        targets = torch.tensor([make.numbers.randint(0, high) for _ in range(n)]).long()

    def equal(anchors: Tensor, candidates: Tensor) -> Tensor:
        a, c = (F.normalize(x.double(), eps=1e-300) for x in (anchors, candidates))
        wanted = torch.arange(n) if targets is None else targets
        loss = F.cross_entropy(a @ c.T / temperature, wanted)
        return loss.to(torch.promote_types(anchors.dtype, torch.float32))

    largest = torch.cat([x.double().abs().amax(1) for x in (anchors, candidates)])
    largest = largest[largest > 0]
    slope = float((1 / largest).clamp(max=1e307).amax()) if len(largest) else 0.0
    calm = all(x.numel() and 1e-3 < x.abs().amax() < 1e3 for x in (anchors, candidates))
    return Call(
        lambda a, c: ops.nt_xent(
            *(a, c),
            temperature=temperature,
            targets=targets,
            symmetric=symmetric,
            negatives=negatives,
        ),
        [anchors, candidates],
        equal=equal if calm and not symmetric and negatives == "candidates" else None,
        size=1 / max(temperature, 1e-40),
        gradient=min(slope / max(temperature, 1e-40), 1e307),
        finite=True,
    )
