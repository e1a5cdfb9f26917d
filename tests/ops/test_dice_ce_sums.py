"""What a reference cannot show of dice_ce_sums and the losses on top of it."""

import math

import pytest
import torch
from torch.nn import functional as F

from cmrfast import ops
from cmrfast.ops._op import OPS


def test_sums_of_uniform_logits():
    labels = torch.zeros(1, 8, 8, dtype=torch.int64)
    labels[:, :4, :4] = 1
    sums = ops.dice_ce_sums(torch.zeros(1, 2, 8, 8), labels)
    expected = torch.tensor([[[24, 32, 48, 48 * math.log(2)], [8, 32, 16, 16 * math.log(2)]]])
    torch.testing.assert_close(sums, expected)


def test_cross_entropy_is_torchs():
    logits, labels = torch.randn(3, 4, 9, 7), torch.randint(0, 4, (3, 9, 7))
    labels[:, 0] = -100
    ce = ops.dice_ce_sums(logits, labels)[..., 3].sum()
    torch.testing.assert_close(ce, F.cross_entropy(logits, labels, reduction="sum"))
    masks = torch.rand(3, 4, 9, 7)
    ce = ops.dice_ce_sums(logits, masks, activation="sigmoid")[..., 3].sum()
    torch.testing.assert_close(
        ce, F.binary_cross_entropy_with_logits(logits, masks, reduction="sum")
    )


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_huge_logits_stay_finite(activation, size):
    logits = torch.zeros(1, 2, 4, 4)
    logits[:, 1] = size
    logits.requires_grad_()
    labels = torch.ones(1, 4, 4, dtype=torch.int64)
    sums = ops.dice_ce_sums(logits, labels, activation=activation)
    assert sums.isfinite().all()
    assert sums[0, 1, 3].item() == pytest.approx(0 if size > 0 else 16e4, abs=1e-3)
    sums.sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("classes", [5, 8, 9, 37])
@pytest.mark.parametrize("activation", [0, 1, 2])
def test_sums_of_many_classes(activation, classes):
    logits = 30 * torch.randn(2, classes, 301)
    logits = logits.sigmoid() if activation == 2 else logits
    args = (logits, torch.randint(0, classes, (2, 301)), activation, 3, 1e-4, True)
    sums, backward = OPS["dice_ce_sums"], OPS["dice_ce_sums_backward"]
    torch.testing.assert_close(sums(*args), sums.reference(*args))
    args = (torch.randn(2, classes, 4), *args[:-1])
    torch.testing.assert_close(backward(*args), backward.reference(*args), rtol=1.3e-6, atol=5e-5)


def test_ignored_pixels_have_no_gradient():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    labels = torch.randint(0, 3, (1, 4, 4))
    labels[:, :2] = 7
    ops.dice_ce_sums(logits, labels, ignore_index=7).sum().backward()
    assert (logits.grad[:, :, :2] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_accumulate_in_float32(dtype):
    logits, labels = torch.randn(1, 2, 100, 100).to(dtype), torch.randint(0, 2, (1, 100, 100))
    sums = ops.dice_ce_sums(logits, labels)
    assert sums.dtype == torch.float32
    assert torch.equal(sums, ops.dice_ce_sums(logits.float(), labels))


def test_label_faults_are_ignored_under_compilation():
    logits, labels = torch.randn(1, 2, 4, 4), torch.full((1, 4, 4), 9)
    compiled = torch.compile(ops.dice_ce_sums, fullgraph=True, backend="aot_eager", dynamic=True)
    assert (compiled(logits, labels) == 0).all()
    with pytest.raises(ValueError, match=r"0 to 1 or ignore_index -100; 16 pixels hold"):
        ops.dice_ce_sums(logits, labels)


LOGITS, LABELS = torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((LOGITS.long(), LABELS), {}, TypeError, "logits must be a floating tensor"),
        ((LOGITS, LABELS[:1]), {}, ValueError, r"target must be labels \(B, \*S\)"),
        ((LOGITS, LABELS + 0.5), {}, ValueError, "labels must be whole numbers; masks or"),
        ((LOGITS[0, 0], LABELS), {}, ValueError, r"logits must be \(B, K, \*S\)"),
        ((LOGITS, LABELS), {"activation": "relu"}, ValueError, "activation must be one of"),
        ((LOGITS[:, :0], LABELS), {}, ValueError, "there must be 1 to 16384 classes; got 0"),
    ],
)
def test_messages(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ops.dice_ce_sums(*arguments, **options)


@pytest.mark.parametrize("ignore", [-100, 3, 156, 412, 2**24 + 1, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float32]
)
def test_ignore_index_is_never_rounded_into_the_dtype_of_the_target(ignore, dtype):
    """156 is what is left of -100 in uint8; float32 rounds 2^24 + 1 to 2^24."""
    values = torch.tensor([0, 1, 3, 156, 2**24])
    if dtype in (torch.bool, torch.uint8, torch.int16):
        values = values[: 4 - (dtype == torch.bool) * 2]
    target = values.to(dtype).view(1, 1, -1).contiguous()
    logits = torch.zeros(target.shape, dtype=torch.float64)
    sums = ops.dice_ce_sums(logits, target, activation="none", ignore_index=ignore)
    kept = [v for v in values.tolist() if v != ignore]
    assert sums[0, 0, 2].item() == sum(kept)
    args = logits, target, 2, ignore, 1e-4, True
    torch.testing.assert_close(OPS["dice_ce_sums"].reference(*args), sums)


def test_a_target_that_requires_a_gradient_is_refused():
    logits, target = torch.randn(1, 2, 5), torch.rand(1, 2, 5, requires_grad=True)
    with pytest.raises(ValueError, match=r"^dice_ce_sums: target has no gradient; detach it"):
        ops.dice_ce_sums(logits, target)
    with torch.no_grad():
        assert torch.equal(
            ops.dice_ce_sums(logits, target), ops.dice_ce_sums(logits, target.detach())
        )


def test_vmap_over_batches():
    logits, target = torch.randn(3, 2, 4, 5, 6), torch.randint(0, 4, (3, 2, 5, 6))
    expected = torch.stack([ops.dice_ce_sums(x, y) for x, y in zip(logits, target, strict=True)])
    torch.testing.assert_close(torch.func.vmap(ops.dice_ce_sums)(logits, target), expected)


def test_ignored_pixels_may_hold_anything():
    logits, target = torch.randn(1, 3, 8, 8), torch.randint(0, 3, (1, 8, 8))
    target[0, 2, 3] = -100
    expected = ops.dice_ce_sums(logits, target)
    for bad in (torch.nan, torch.inf):
        logits[0, :, 2, 3] = bad
        assert torch.equal(ops.dice_ce_sums(logits, target), expected)
