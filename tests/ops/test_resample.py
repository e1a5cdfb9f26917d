"""resample against SimpleITK, and its special paths against one another."""

import math

import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from torch.utils._python_dispatch import TorchDispatchMode

from cmrfast import ops
from cmrfast.ops._op import OPS
from cmrfast.ops.resample import _inverse

EYE = torch.eye(4, dtype=torch.float64)


def random_affine(spacing):
    """Rotated axes, anisotropic spacing and an origin."""
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    rotation[:, 0] *= torch.linalg.det(rotation)
    affine = EYE.clone()
    affine[:3, :3] = rotation * torch.tensor(spacing, dtype=torch.float64)
    affine[:3, 3] = 3 * torch.randn(3, dtype=torch.float64)
    return affine


def itk_image(sitk, volume, affine):
    image = sitk.GetImageFromArray(volume.permute(2, 1, 0).contiguous().numpy())
    spacing = torch.linalg.vector_norm(affine[:3, :3], dim=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).flatten().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_equals_simpleitk_on_oblique_grids(seed, mode):
    sitk = pytest.importorskip("SimpleITK")
    torch.manual_seed(seed)
    volume = torch.randn(9, 11, 13)
    source, target = random_affine((1.0, 0.8, 2.5)), random_affine((0.9, 1.3, 0.7))
    centre = source @ torch.tensor([4.0, 5.0, 6.0, 1.0], dtype=torch.float64)
    middle = target @ torch.tensor([7.0, 8.0, 7.5, 1.0], dtype=torch.float64)
    target[:3, 3] += (centre - middle)[:3]
    shape = (14, 16, 15)
    reference = itk_image(sitk, torch.zeros(shape), target)
    interpolator = sitk.sitkLinear if mode == "linear" else sitk.sitkNearestNeighbor
    expected = sitk.Resample(
        itk_image(sitk, volume, source), reference, sitk.Transform(), interpolator, -9.0
    )
    expected = torch.from_numpy(sitk.GetArrayFromImage(expected)).permute(2, 1, 0)
    ours = ops.resample(volume[None], source, target, shape, mode=mode, fill=-9.0)[0]
    assert (expected == -9).any()
    assert (expected != -9).any()
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (2, 1, 0)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_axis_aligned_path_equals_the_general_one(order, sign):
    volume = torch.randn(2, 8, 9, 10, dtype=torch.float64)
    target = EYE.clone()
    target[:3, :3] = torch.diag(torch.tensor([0.7, sign * 1.3, 0.9], dtype=torch.float64))[
        list(order)
    ]
    target[:3, 3] = torch.tensor([1.3, 4.2, 0.4])
    oblique = target.clone()
    oblique[0, :3] += 1e-9  # no longer axis-aligned, and moves no sample that counts
    fast = ops.resample(volume, EYE, target, (9, 7, 8), fill=-1.0)
    general = ops.resample(volume, EYE, oblique, (9, 7, 8), fill=-1.0)
    torch.testing.assert_close(fast, general, rtol=0, atol=1e-6)


def test_same_grid_is_the_volume():
    volume, affine = torch.randn(1, 6, 7, 8), random_affine((1.0, 2.0, 3.0))
    assert torch.equal(ops.resample(volume, affine, affine, (6, 7, 8)), volume)


def test_antialias_smooths_shrunk_axes_alone():
    volume = torch.randn(1, 40, 12, 12)
    coarser = torch.diag(torch.tensor([4.0, 1.0, 1.0, 1.0]))
    plain = ops.resample(volume, EYE, coarser, (10, 12, 12))
    smooth = ops.resample(volume, EYE, coarser, (10, 12, 12), antialias=True)
    assert smooth.std() < 0.6 * plain.std()
    same = ops.resample(volume, EYE, EYE, (40, 12, 12), antialias=True)
    torch.testing.assert_close(same, volume)
    impulse = torch.zeros(1, 41, 1, 1)
    impulse[0, 20] = 1
    shrunk = ops.resample(
        impulse, EYE, torch.diag(torch.tensor([2.0, 1, 1, 1])), (21, 1, 1), antialias=True
    )
    sigma = math.sqrt(3) / 2
    assert shrunk[0, 10].item() == pytest.approx(1 / (sigma * math.sqrt(2 * math.pi)), rel=0.05)


def test_masks_stay_masks():
    mask = torch.rand(1, 6, 5, 4) < 0.5
    finer = torch.diag(torch.tensor([0.5, 0.5, 0.5, 1.0]))
    out = ops.resample(mask, EYE, finer, (13, 10, 8), mode="nearest", fill=1.0)
    assert out.dtype == torch.bool
    as_bytes = ops.resample(mask.byte(), EYE, finer, (13, 10, 8), mode="nearest", fill=1.0)
    assert torch.equal(out, as_bytes.bool())


def test_integer_volumes_keep_their_dtype_and_ties_go_up():
    labels = torch.tensor([0, 500, 200, 600], dtype=torch.int16).view(1, 4, 1, 1)
    finer = torch.diag(torch.tensor([0.5, 1.0, 1.0, 1.0]))
    out = ops.resample(labels, EYE, finer, (8, 1, 1), mode="nearest", fill=-1)
    assert out.dtype == torch.int16
    assert out.flatten().tolist() == [0, 500, 500, 200, 200, 600, 600, -1]


def test_gradient_flows_into_the_volume():
    volume = torch.randn(1, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    target = random_affine((1.0, 1.0, 1.0))
    call = lambda v: ops.resample(v, EYE, target, (3, 4, 5))  # noqa: E731
    assert torch.autograd.gradcheck(call, [volume])


def test_the_inverse_in_closed_form_is_as_exact_as_of_a_library():
    """GPUs have no other; it rounds by a few units in the last place of the largest entries."""
    for spacing in [(1.0, 1.0, 1.0), (0.3, 0.7, 8.0), (1e-2, 1.0, 50.0)]:
        for _ in range(50):
            affine = random_affine(spacing)
            affine[:3, 3] *= 100
            inverse = _inverse(affine)
            eps = torch.finfo(torch.float64).eps * torch.linalg.cond(affine)
            expected = torch.linalg.inv(affine)
            torch.testing.assert_close(inverse, expected, rtol=0, atol=eps * expected.abs().max())
            any_row = torch.randn(4, 4, dtype=torch.float64)
            torch.testing.assert_close(_inverse(any_row) @ any_row, EYE, rtol=0, atol=1e-9)
    assert torch.equal(_inverse(EYE), EYE)
    assert not _inverse(0 * EYE).isfinite().any()


def test_a_gpus_inverse_samples_the_same(monkeypatch):
    labels, fine, coarse = torch.arange(40).view(1, 40, 1, 1), EYE.clone(), EYE.clone()
    fine[0, 0], coarse[0, 0] = 0.3, 0.6
    volume, source, target = torch.randn(1, 9, 8, 7), *map(random_affine, ((1.0, 0.8, 2.5),) * 2)
    calls = [
        lambda: ops.resample(labels, fine, coarse, (21, 1, 1), mode="nearest", fill=-1),
        lambda: ops.resample(volume, source, target, (9, 8, 7)),
        lambda: ops.resample(volume, source, source, (9, 8, 7)),
    ]
    expected = [call() for call in calls]
    failed = torch.zeros((), dtype=torch.int32)
    monkeypatch.setattr(torch.linalg, "inv_ex", lambda matrix: (_inverse(matrix), failed))
    assert all(map(torch.equal, [call() for call in calls], expected))


class Recorder(TorchDispatchMode):
    """Keeps the names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def test_off_the_cpu_nothing_synchronises():
    """Nor calls a library for linear algebra: both would break the capture of a CUDA graph."""
    volume = torch.empty(1, 6, 5, 4, device="meta")
    affine = torch.empty(4, 4, dtype=torch.float64, device="meta")
    with Recorder() as recorder:
        ops.resample(volume, affine, affine, (6, 5, 4), antialias=True)
        OPS["vox_from_vox"].reference(affine, affine, 3)
    assert {"cmrfast::vox_from_vox", "aten::round"} <= recorder.names
    refused = ("linalg_inv", "linalg_lu", "linalg_solve", "_local_scalar_dense", "nonzero", "mm")
    assert not [name for name in recorder.names for part in refused if part in name]


def test_ties_and_the_border_survive_the_inverse():
    """0.3 mm to 0.6 mm puts every sample on a tie, which rounding must not scatter."""
    labels = torch.arange(40).view(1, 40, 1, 1)
    fine, coarse = EYE.clone().double(), EYE.clone().double()
    fine[0, 0], coarse[0, 0] = 0.3, 0.6
    for origin_mm in (0.0, 5.0, -71.3):
        fine[0, 3], coarse[0, 3] = origin_mm, origin_mm - 0.15
        out = ops.resample(labels, fine, coarse, (21, 1, 1), mode="nearest", fill=-1)
        assert out.flatten().tolist() == [*range(0, 40, 2), -1]


def test_antialias_equals_scipy():
    volume = torch.randn(1, 40, 9, 8, dtype=torch.float64)
    coarser = torch.diag(torch.tensor([4.0, 1.0, 0.5, 1.0]))
    smooth = gaussian_filter1d(
        volume.numpy(), math.sqrt(15) / 2, axis=1, mode="nearest", truncate=6
    )
    torch.testing.assert_close(
        ops.resample(volume, EYE, coarser, (10, 9, 16), antialias=True),
        ops.resample(torch.from_numpy(smooth), EYE, coarser, (10, 9, 16)),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_and_autocast_smooth_in_float32(dtype):
    volume, coarser = torch.rand(1, 6, 5, 4).to(dtype), torch.diag(torch.tensor([2.2, 0.7, 1, 1]))
    with torch.autocast("cpu", torch.bfloat16):
        half = ops.resample(volume, EYE, coarser, (3, 5, 4), antialias=True)
    whole = ops.resample(volume.float(), EYE, coarser, (3, 5, 4), antialias=True)
    assert torch.equal(half, whole.to(dtype))


def test_a_slice_of_two_axes():
    volume, grid = torch.randn(2, 9, 8), torch.diag(torch.tensor([0.5, 0.7, 9.0, 1.0]))
    flat = ops.resample(volume, EYE, grid, (12, 11))
    deep = ops.resample(volume[..., None], EYE, grid, (12, 11, 1))
    torch.testing.assert_close(flat, deep[..., 0])


def test_compiles_and_exports_with_antialias():
    class Resample(torch.nn.Module):
        def forward(self, volume, affine, target):
            return ops.resample(volume, affine, target, (6, 5, 4), antialias=True)

    target = torch.diag(torch.tensor([1.7, 0.7, 0.8, 1.0]))
    compiled = torch.compile(Resample(), fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (7, 8, 11):
        arguments = torch.rand(1, n, 6, 5), EYE, target
        torch.testing.assert_close(compiled(*arguments), Resample()(*arguments))
    compiled(arguments[0], EYE * 0, target)  # values are checked on the CPU outside compilation
    exported = torch.export.export(Resample(), arguments).module()
    torch.testing.assert_close(exported(*arguments), Resample()(*arguments))


VOLUME = torch.ones(1, 4, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (
            (VOLUME.to(torch.complex64), EYE, EYE, (4, 4, 4)),
            {},
            TypeError,
            "volume must be a real tensor",
        ),
        (
            (VOLUME[0, 0], EYE, EYE, (4, 4)),
            {},
            ValueError,
            r"volume must be \(C, \*S\) with",
        ),
        ((VOLUME, EYE, EYE, (4, 4)), {}, ValueError, "to_shape must have one entry per space axis"),
        (
            (VOLUME, EYE[:3], EYE, (4, 4, 4)),
            {},
            ValueError,
            r"world_from_vox must be \(4, 4\)",
        ),
        ((VOLUME, EYE * 0, EYE, (4, 4, 4)), {}, ValueError, "must be finite and invertible"),
        (
            (VOLUME, EYE * torch.nan, EYE, (4, 4, 4)),
            {},
            ValueError,
            "must be finite and invertible",
        ),
        (
            (VOLUME.long(), EYE, EYE, (4, 4, 4)),
            {},
            TypeError,
            "torch.int64 volumes need mode nearest",
        ),
        ((VOLUME, EYE, EYE, (4, 4, 4)), {"mode": "cubic"}, ValueError, "mode must be one of"),
    ],
)
def test_messages(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ops.resample(*arguments, **options)


@pytest.mark.parametrize("fill", [300, -129, 2.7, 1e30, float("nan")])
def test_a_fill_that_an_integer_volume_cannot_hold_is_refused(fill):
    volume = torch.ones(1, 2, 2, 2, dtype=torch.int8)
    message = r"^resample: fill must fit torch.int8 \(-128 to 127\); got "
    with pytest.raises(ValueError, match=message):
        ops.resample(volume, torch.eye(4), torch.eye(4), (2, 2, 2), mode="nearest", fill=fill)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint16, torch.int32, torch.uint64, torch.int64]
)
def test_nearest_keeps_integers_that_no_float_holds(dtype):
    limits = torch.iinfo(dtype)
    values = [limits.min, limits.max, limits.max - 1, 1]
    volume = torch.tensor(values, dtype=dtype).view(1, 1, 1, 4)
    moved = torch.eye(4)
    moved[2, 3] = 2
    out = ops.resample(volume, torch.eye(4), moved, (1, 1, 4), mode="nearest", fill=limits.min)
    assert out.dtype == dtype
    assert out.flatten().tolist() == [*values[2:], limits.min, limits.min]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nearest_fills_half_precision_with_the_number(dtype):
    """The kernel copies bits; the fill was once taken for the bits of an int16."""
    moved = torch.eye(4)
    moved[2, 3] = 2
    volume = torch.arange(4.0).view(1, 1, 1, 4).to(dtype)
    out = ops.resample(volume, torch.eye(4), moved, (1, 1, 4), mode="nearest", fill=300.0)
    assert out.flatten().tolist() == [2, 3, 300, 300]
