"""resample_argmax against argmax after resample, torch's interpolation and SimpleITK."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from cmrfast import ops
from cmrfast.ops._backend import kernel_of
from cmrfast.ops._check import FLOATS

EYE = torch.eye(4, dtype=torch.float64)
OUTSIDE = -1e9


def grid(scale, offset=(0.0, 0.0, 0.0), order=(0, 1, 2), turned=0.0):
    """A matrix (4, 4) of another grid."""
    affine = EYE.clone()
    affine[:3, :3] = torch.diag(torch.tensor(scale, dtype=torch.float64))[list(order)]
    affine[:3, :3] += turned * torch.tensor([[0, 1, 2], [-1, 0, 1], [2, -1, 0]])
    affine[:3, 3] = torch.tensor(offset)
    return affine


def from_resample(logits, target, shape, fill, **options):
    """The labels by way of the resampled logits."""
    values = ops.resample(logits, EYE, target, shape, fill=OUTSIDE, **options)
    return torch.where(values[0] == OUTSIDE, fill, values.argmax(0))


TARGETS = {
    "spacing": grid((0.7, 1.3, 0.9), (-0.2, 0.4, -0.6)),
    "mirrored": grid((-0.7, 1.3, -0.9), (6.0, 0.4, 7.0)),
    "axes exchanged": grid((0.7, 1.3, 0.9), (0.3, 0.1, -0.6), order=(2, 0, 1)),
    "oblique": grid((0.7, 1.1, 0.9), (0.2, 0.4, -1.6), turned=0.1),
    "coarser": grid((3.0, 2.5, 4.0), (0.3, 0.2, -0.1)),
    "elsewhere": grid((1.0, 1.0, 1.0), (50.0, 0.0, 0.0)),
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("classes", [1, 2, 14])
@pytest.mark.parametrize("shape", [(8, 9, 11), (8, 9)])
def test_equals_resample_and_argmax(target, classes, shape):
    torch.manual_seed(0)
    logits, to_shape = torch.randn(classes, *shape, dtype=torch.float64), (21, 7, 13)[: len(shape)]
    labels = ops.resample_argmax(logits, EYE, target, to_shape, fill=99)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), from_resample(logits, target, to_shape, 99))


def test_many_rows_and_planes():
    torch.manual_seed(1)
    logits, target = torch.randn(3, 20, 30, 40, dtype=torch.float64), grid((0.5, 0.4, 0.3))
    labels = ops.resample_argmax(logits, EYE, target, (41, 71, 133), fill=7)
    assert torch.equal(labels.long(), from_resample(logits, target, (41, 71, 133), 7))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("turned", [0.0, 0.1])
def test_half_precision_is_interpolated_in_float(dtype, turned):
    torch.manual_seed(2)
    logits, target = torch.randn(5, 6, 7, 8).to(dtype), grid((0.5, 0.3, 0.7), turned=turned)
    labels = ops.resample_argmax(logits, EYE, target, (11, 12, 13), fill=5)
    exact = logits if dtype == torch.float64 else logits.float()
    assert torch.equal(labels.long(), from_resample(exact, target, (11, 12, 13), 5))


def test_equals_torch_interpolation():
    torch.manual_seed(3)
    logits = torch.randn(6, 5, 6, 7, dtype=torch.float64)
    scale = torch.tensor([5 / 9, 0.5, 0.7], dtype=torch.float64)
    target = grid(scale.tolist(), ((scale - 1) / 2).tolist())  # the outer edges in one place
    expected = F.interpolate(logits[None], (9, 12, 10), mode="trilinear")[0].argmax(0)
    labels = ops.resample_argmax(logits, EYE, target, (9, 12, 10), fill=99)
    assert torch.equal(labels.long(), expected)


def test_equals_simpleitk():
    sitk = pytest.importorskip("SimpleITK")
    torch.manual_seed(4)
    logits, target = torch.randn(3, 8, 9, 11), grid((0.7, 0.8, 0.9), (1.3, -0.3, 0.1))
    resampled = []
    for values in logits:
        image = sitk.GetImageFromArray(values.permute(2, 1, 0).contiguous().numpy())
        size, spacing, origin = (9, 12, 8), target.diag()[:3].tolist(), target[:3, 3].tolist()
        identity, direction = sitk.Transform(), (1, 0, 0, 0, 1, 0, 0, 0, 1)
        resampled.append(
            sitk.GetArrayFromImage(
                sitk.Resample(
                    image, size, identity, sitk.sitkLinear, origin, spacing, direction, OUTSIDE
                )
            )
        )
    values = torch.stack([torch.from_numpy(r).permute(2, 1, 0) for r in resampled])
    expected = torch.where(values[0] == OUTSIDE, 99, values.argmax(0))
    labels = ops.resample_argmax(logits, EYE, target, (9, 12, 8), fill=99)
    assert torch.equal(labels.long(), expected)


@pytest.mark.parametrize("turned", [0.0, 1e-9])
def test_ties_go_to_the_lowest_class(turned):
    logits = torch.tensor([0.0, 2.0, 1.0, 2.0]).view(4, 1, 1, 1).expand(4, 3, 4, 5)
    target = grid((0.5, 0.5, 0.5), turned=turned)
    assert (ops.resample_argmax(logits, EYE, target, (5, 7, 9)) == 1).all()


@pytest.mark.parametrize("turned", [0.0, 1e-9])
def test_nan_is_the_largest_value(turned):
    logits = torch.zeros(4, 3, 3, 20)
    logits[1] = 5
    logits[2:, 1, 1, 9] = torch.nan  # of two, the first
    logits[0, :, :, 17] = torch.nan
    labels = ops.resample_argmax(logits, EYE, grid((1.0, 1.0, 1.0), turned=turned), (3, 3, 20))
    assert labels[1, 1, 9] == 2
    assert (labels[..., 17] == 0).all()
    assert (labels[..., :8] == 1).all()


@pytest.mark.parametrize(
    ("dtype", "fill"),
    [
        *((torch.uint8, 255), (torch.int8, -128), (torch.int16, -7), (torch.int32, 10**9)),
        *((torch.int64, -(2**62)), (torch.uint16, 65535), (torch.uint32, 2**32 - 1)),
        (torch.uint64, 2**64 - 1),
    ],
    ids=str,
)
def test_labels_have_the_dtype_asked_for(dtype, fill):
    logits = torch.tensor([0.0, 1.0]).view(2, 1, 1).expand(2, 3, 3)
    labels = ops.resample_argmax(logits, EYE, EYE, (3, 4), fill=fill, dtype=dtype)
    assert labels.dtype == dtype
    assert labels.tolist() == [[1, 1, 1, fill]] * 3


def test_more_classes_than_a_byte_holds():
    logits = torch.zeros(300, 2, 2)
    logits[299] = 1
    assert (ops.resample_argmax(logits, EYE, EYE, (2, 2), dtype=torch.int16) == 299).all()


@pytest.mark.skipif(kernel_of("resample_argmax", "CPU") != "native", reason="of the CPU kernel")
def test_the_resampled_logits_are_never_in_memory():
    code = """
import resource, torch
from cmrfast import ops
logits, finer = torch.randn(64, 4, 4, 4), torch.diag(torch.tensor([1 / 32] * 3 + [1.0]))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
ops.resample_argmax(logits, torch.eye(4), finer, (8, 8, 8))
before = peak()
ops.resample_argmax(logits, torch.eye(4), finer, (128, 128, 128))
print(peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 64  # MB; the labels are 2, all logits would be 512


def test_gradients_stop_here():
    logits = torch.randn(2, 3, 4, requires_grad=True)
    assert not ops.resample_argmax(logits, EYE, EYE, (3, 4)).requires_grad


def test_compiles_and_exports():
    class Call(torch.nn.Module):
        def forward(self, logits, affine):
            return ops.resample_argmax(logits, affine, 0.7 * affine, (9, 8, 7), fill=5)

    logits = torch.randn(4, 5, 6, 7)
    expected = Call()(logits, EYE)
    compiled = torch.compile(Call(), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(logits, EYE), expected)
    assert torch.equal(torch.export.export(Call(), (logits, EYE)).module()(logits, EYE), expected)


LOGITS = torch.zeros(3, 4, 5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.zeros(3, 4)}, ValueError, r"logits must be \(K, \*S\) with 2 or 3 space"),
        ({"logits": LOGITS.long()}, TypeError, "logits must be a floating tensor; got torch.int64"),
        ({"logits": LOGITS[:0]}, ValueError, r"shape of logits must be at least 1 on every axis"),
        ({"world_from_vox": torch.eye(3)}, ValueError, r"world_from_vox must be \(4, 4\); got"),
        ({"world_from_vox": 0 * EYE}, ValueError, "world_from_vox must be finite and invertible"),
        ({"to_world_from_vox": EYE.int()}, TypeError, "to_world_from_vox must be a floating"),
        ({"to_shape": (4, 5, 6)}, ValueError, r"to_shape must have one entry per space axis \(2\)"),
        ({"to_shape": (4, 0)}, ValueError, "to_shape must be at least 1 on every axis"),
        ({"dtype": torch.float32}, TypeError, "dtype must be an integer dtype; got torch.float32"),
        ({"dtype": torch.bool}, TypeError, "dtype must be an integer dtype; got torch.bool"),
        ({"fill": 0.5}, TypeError, "fill must be an int; got float"),
        ({"fill": 256}, ValueError, r"fill must fit torch.uint8 \(0 to 255\); got 256"),
        (
            {"logits": torch.zeros(130, 2, 2), "dtype": torch.int8},
            ValueError,
            r"the last class must fit torch.int8 \(-128 to 127\); got 129",
        ),
    ],
)
def test_messages(change, error, message):
    args = {"logits": LOGITS, "world_from_vox": EYE, "to_world_from_vox": EYE, "to_shape": (4, 5)}
    with pytest.raises(error, match=f"^resample_argmax: {message}"):
        ops.resample_argmax(**(args | change))


def merged_patches():
    """A merger of two classes on (6, 7, 8), whose last planes no patch covers."""
    torch.manual_seed(5)
    merger = ops.PatchMerger((6, 7, 8), 3, (4, 4, 4), weight=torch.rand(4, 4, 4) + 0.5)
    for start in ops.cover_starts((4, 7, 8), (4, 4, 4), overlap=2).split(2):
        merger.add(torch.randn(len(start), 3, 4, 4, 4), start)
    return merger


def test_labels_of_a_merger_on_its_own_grid():
    merger = merged_patches()
    labels = merger.labels(fill=9)
    assert labels.dtype == torch.uint8
    assert merger.labels(fill=2**64 - 1, dtype=torch.uint64)[5, 6, 7].item() == 2**64 - 1
    assert torch.equal(labels[:4].long(), merger.merged().argmax(0)[:4])
    assert (labels[4:] == 9).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.uint16])
def test_labels_of_a_merger_on_another_grid(dtype):
    merger, target = merged_patches(), TARGETS["oblique"]
    labels = merger.labels(EYE, target, (9, 8, 9), fill=9, dtype=dtype)
    covered = torch.zeros(1, 6, 7, 8)
    covered[:, :4] = 1
    covered = ops.resample(covered, EYE, target, (9, 8, 9), mode="nearest")[0] > 0
    expected = torch.where(covered, from_resample(merger.merged(), target, (9, 8, 9), 9), 9)
    assert labels.dtype == dtype
    assert torch.equal(labels.long(), expected)
    assert 0.1 < covered.float().mean() < 0.9


def test_messages_of_a_merger():
    merger = merged_patches()
    with pytest.raises(ValueError, match=r"^PatchMerger.labels: give all of world_from_vox,"):
        merger.labels(EYE, EYE)
    with pytest.raises(TypeError, match=r"^PatchMerger.labels: dtype must be an integer dtype"):
        merger.labels(dtype=torch.float32)
    with pytest.raises(ValueError, match=r"^PatchMerger.labels: fill must fit torch.uint8"):
        merger.labels(fill=-1)
