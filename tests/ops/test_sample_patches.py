"""What a reference cannot show of sample_patches."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrfast import ops

VOLUME = torch.arange(2 * 5 * 6 * 7, dtype=torch.float32).view(2, 5, 6, 7)
CENTER = torch.tensor([[1.5, 2.0, 3.0], [2.0, 2.5, 3.5]])
MATRIX = torch.eye(3).repeat(2, 1, 1)
SIZE = (2, 3, 4)
DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8),
    *(torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64),
]


def turned(count, axes):
    """Centers in a volume of 20 voxels an axis, and matrices near a rotation."""
    matrix = torch.eye(axes, dtype=torch.float64) + 0.3 * torch.randn(count, axes, axes).double()
    return 9.5 + 6 * torch.randn(count, axes, dtype=torch.float64), matrix


def positions(center, matrix, size):
    """Positions of the voxels of one patch, (*size, d)."""
    steps = torch.meshgrid(*[torch.arange(s) - (s - 1) / 2 for s in size], indexing="ij")
    return center + torch.stack(steps, -1).double() @ matrix.double().T


@given(st.integers(0, 2**32 - 1), st.sampled_from(DTYPES), st.sampled_from(DTYPES))
@settings(max_examples=60, deadline=None)
def test_a_patch_on_the_grid_is_an_extracted_one_to_the_bit(seed, source, target):
    torch.manual_seed(seed)
    axes = 2 + seed % 2
    shapes = [torch.randint(1, 9, (axes,)).tolist() for _ in range(3)]
    volumes = [(300 * torch.randn(2, *shape)).to(source) for shape in shapes]
    size = torch.randint(1, 9, (axes,)).tolist()
    start, flips = torch.randint(-9, 9, (7, axes)), torch.rand(7, axes) < 0.5
    options = {"volume_index": torch.randint(0, 3, (7,)), "fill": -3.25, "dtype": target}
    if seed % 3:
        options |= {"shift": torch.randn(3, 2), "scale": torch.rand(2) + 0.5}
    expected = ops.extract_patches(volumes, start, size, flips=flips, **options)
    center = start + (torch.tensor(size) - 1) / 2
    matrix = torch.diag_embed(1.0 - 2 * flips)
    for mode in ("linear", "nearest", "cubic"):
        if mode == "cubic" and not target.is_floating_point:
            continue
        patches = ops.sample_patches(volumes, center, matrix, size, mode=mode, **options)
        assert torch.equal(patches.view(torch.uint8), expected.view(torch.uint8))


def test_integers_beyond_float_keep_their_value():
    volume = torch.full((1, 3, 3), 2**62 + 1)
    center, turn = torch.ones(1, 2), torch.tensor([[[0.0, -1.0], [1.0, 0.0]]])
    for mode in ("linear", "nearest"):
        patch = ops.sample_patches(volume, center, turn, (3, 3), mode=mode, dtype=torch.int64)
        assert (patch == 2**62 + 1).all()


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int16, torch.uint8])
@pytest.mark.parametrize(("mode", "order"), [("linear", 1), ("nearest", 0)])
def test_agrees_with_scipy(axes, dtype, mode, order):
    ndimage = pytest.importorskip("scipy.ndimage")
    torch.manual_seed(0)
    volume = (60 + 40 * torch.randn(1, *[20] * axes)).clamp(0, 200).to(dtype)
    size, (center, matrix) = (17, 70, 9)[:axes], turned(6, axes)
    options = {"mode": mode, "shift": 3.0, "scale": 0.5, "fill": 7.0, "dtype": torch.float64}
    patches = ops.sample_patches(volume, center, matrix, size, **options)
    # Beyond the padding, whatever is outside is the fill value: as in an infinite image.
    padded = np.pad((volume[0].double().numpy() - 3) * 0.5, 2, constant_values=7.0)
    for p in range(len(center)):
        at = np.moveaxis(positions(center[p], matrix[p], size).numpy(), -1, 0) + 2
        expected = ndimage.map_coordinates(padded, at, order=order, mode="nearest")
        torch.testing.assert_close(patches[p, 0], torch.from_numpy(expected))


@pytest.mark.parametrize("axes", [2, 3])
def test_agrees_with_grid_sample(axes):
    torch.manual_seed(0)
    volumes = torch.randn(3, 2, *[20] * axes)
    size, (center, matrix) = (17, 30, 9)[:axes], turned(5, axes)
    index = torch.tensor([2, 0, 1, 1, 0])
    patches = ops.sample_patches(volumes, center, matrix, size, volume_index=index)
    for p, volume in enumerate(volumes[index]):
        grid = positions(center[p], matrix[p], size) * (2 / 19) - 1
        expected = torch.nn.functional.grid_sample(
            volume[None].double(), grid.flip(-1)[None], align_corners=True
        )
        torch.testing.assert_close(patches[p], expected[0].float(), rtol=1e-4, atol=1e-5)


def test_cubic_reproduces_parabolas():
    """Convolution with a = -1/2 is exact for polynomials of second degree, a = -3/4 is not."""
    i, j, k = torch.meshgrid(*[torch.arange(20.0, dtype=torch.float64)] * 3, indexing="ij")

    def parabola(i, j, k):
        return i**2 - 3 * i * j + 0.5 * k**2 + j - 7

    center = torch.full((4, 3), 9.3, dtype=torch.float64)
    _, matrix = turned(4, 3)
    patches = ops.sample_patches(
        parabola(i, j, k)[None], center, 0.5 * matrix, (5, 7, 9), mode="cubic", dtype=torch.float64
    )
    for p in range(4):
        at = positions(center[p], 0.5 * matrix[p], (5, 7, 9))
        torch.testing.assert_close(patches[p, 0], parabola(*at.unbind(-1)))


@pytest.mark.parametrize("source", [torch.float32, torch.int16])
def test_cubic_weights_are_those_of_the_convolution(source):
    f, line = 0.3, torch.tensor([[[3.0, -1, 4, 1], [5, 9, -2, 6]]])

    def weight(d):
        d = abs(d)
        return 1.5 * d**3 - 2.5 * d**2 + 1 if d < 1 else -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2

    expected = [sum(weight(f - t) * row[1 + t].item() for t in range(-1, 3)) for row in line[0]]
    center = torch.tensor([[0.5, 1.0 + f]], dtype=torch.float64)
    patch = ops.sample_patches(line.to(source), center, MATRIX[:1, :2, :2], (2, 1), mode="cubic")
    torch.testing.assert_close(patch.flatten(), torch.tensor(expected), atol=1e-6, rtol=1e-6)
    outside = ops.sample_patches(  # two of the four taps are outside
        line.to(source), center + torch.tensor([0, 2.0]), MATRIX[:1, :2, :2], (2, 1), mode="cubic",
        fill=10.0,
    )  # fmt: skip
    taps = [[*row[2:].tolist(), 10, 10] for row in line[0]]
    expected = [sum(weight(f - t) * row[1 + t] for t in range(-1, 3)) for row in taps]
    torch.testing.assert_close(outside.flatten(), torch.tensor(expected), atol=1e-5, rtol=1e-6)


def test_nearest_ties_go_up():
    volume = torch.arange(1.0, 6.0).view(1, 1, 5)
    patch = ops.sample_patches(
        volume, torch.tensor([[0.0, 2.0]]), MATRIX[:1, :2, :2], (1, 6), mode="nearest"
    )
    assert patch.flatten().tolist() == [1, 2, 3, 4, 5, 0]  # at -0.5, 0.5 … 4.5


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("axes", [2, 3])
def test_voxels_of_weight_0_are_not_read(mode, axes):
    """Around every voxel of a sampled lattice there is NaN, and beyond the volume too."""
    volume = torch.full((1, *[12] * axes), torch.nan)
    lattice = (slice(None), *[slice(None, None, 2)] * axes)
    volume[lattice] = torch.randn(volume[lattice].shape)
    center, matrix = torch.full((1, axes), 5.0), 2 * torch.eye(axes)[None]
    patch = ops.sample_patches(volume, center, matrix, [6] * axes, mode=mode, fill=torch.nan)
    assert torch.equal(patch[0], volume[lattice])
    partly = torch.eye(axes)[None] * torch.tensor([2.0] * (axes - 1) + [0.5])  # between rows only
    rows = volume.clone()
    rows[lattice[:-1]] = torch.randn(rows[lattice[:-1]].shape)
    center[:, -1] = 5.25
    patch = ops.sample_patches(rows, center, partly, [6] * axes, mode=mode)
    assert patch.isfinite().all()


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 2.0**62, -(2.0**62), 1e308])
def test_positions_far_away_are_outside(mode, bad):
    options = {"mode": mode, "fill": -7.0, "scale": 2.0}
    outside = torch.full((2, 2, *SIZE), -7.0)
    far = torch.full_like(CENTER.double(), bad)
    assert torch.equal(ops.sample_patches(VOLUME, far, MATRIX, SIZE, **options), outside)
    for row, column in itertools.product(range(3), range(3)):
        matrix = 0.9 * MATRIX.double()
        matrix[:, row, column] = bad
        patches = ops.sample_patches(VOLUME, CENTER, matrix, SIZE, **options)
        assert patches.isfinite().all()
        if SIZE[column] % 2 == 0:  # else the middle of the patch is at its center
            assert torch.equal(patches, outside)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_positions_do_not_accumulate_rounding(mode):
    """Samples of a ramp are positions: they are exact at the end of a long row."""
    width = 30_000
    ramp = torch.arange(width, dtype=torch.float64).expand(1, 5, width).contiguous()
    step = torch.tensor([[[1.0, 0], [0, 0.3]]], dtype=torch.float64)
    center = torch.tensor([[2.2, 14_000.1]], dtype=torch.float64)
    patch = ops.sample_patches(ramp, center, step, (1, 90_001), mode=mode, dtype=torch.float64)
    expected = 14_000.1 + 0.3 * (torch.arange(90_001, dtype=torch.float64) - 45_000)
    assert (patch[0, 0, 0] - expected).abs().max() < 1e-9


def test_integer_patches_are_rounded_and_saturate():
    volume = torch.tensor([[[0.0, 1.0, 2.0, 300.0, -20.0]]])
    half = torch.tensor([[[1.0, 0], [0, 0.5]]])
    patch = ops.sample_patches(volume, torch.tensor([[0.0, 2.0]]), half, (1, 9), dtype=torch.uint8)
    assert patch.flatten().tolist() == [0, 0, 1, 2, 2, 151, 255, 140, 0]


def test_store_and_list_and_batch_agree():
    volumes = [torch.randn(1, 5, 6), torch.randn(1, 8, 3)]
    center, matrix = turned(3, 2)
    center, index = center / 4, torch.tensor([0, 1, 1])
    store = ops.VolumeStore(volumes)
    patches = ops.sample_patches(store, center, matrix, (3, 2), volume_index=index)
    again = ops.sample_patches(volumes, center, matrix, (3, 2), volume_index=index)
    assert torch.equal(patches, again)
    single = ops.sample_patches(volumes[1][None], center[1:], matrix[1:], (3, 2))
    assert torch.equal(patches[1:], single)


def test_no_patches():
    patches = ops.sample_patches(VOLUME, CENTER[:0], MATRIX[:0], SIZE, dtype=torch.int16)
    assert patches.shape == (0, 2, *SIZE)
    assert patches.dtype == torch.int16


@given(st.integers(0, 2**32 - 1), st.sampled_from(["linear", "nearest", "cubic"]))
@settings(max_examples=20, deadline=None)
def test_sampling_and_its_gradient_are_adjoint(seed, mode):
    torch.manual_seed(seed)
    axes = 2 + seed % 2
    volumes = torch.randn(3, 2, *[20] * axes, dtype=torch.float64, requires_grad=True)
    center, matrix = turned(5, axes)
    options = {"mode": mode, "scale": torch.tensor([2.0, 3.0]), "dtype": torch.float64}
    index = torch.randint(0, 3, (5,))
    size = (9, 14, 5)[:axes]
    patches = ops.sample_patches(volumes, center, matrix, size, volume_index=index, **options)
    pull = torch.randn_like(patches)
    patches.backward(pull)
    torch.testing.assert_close((volumes.grad * volumes).sum(), (pull * patches).sum())


def test_centers_and_matrices_get_no_gradient():
    volume = VOLUME.clone().requires_grad_()
    center, matrix = CENTER.clone().requires_grad_(), MATRIX.clone().requires_grad_()
    ops.sample_patches(volume, center, matrix, SIZE).sum().backward()
    assert volume.grad is not None
    assert center.grad is None
    assert matrix.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype):
    volume = VOLUME.to(dtype)
    patches = ops.sample_patches(volume, CENTER + 0.3, 0.7 * MATRIX, SIZE, dtype=dtype)
    assert patches.dtype == dtype
    full = ops.sample_patches(volume.float(), CENTER + 0.3, 0.7 * MATRIX, SIZE)
    assert torch.equal(patches, full.to(dtype))
    poses = (CENTER.to(dtype), MATRIX.to(dtype))
    assert torch.equal(
        ops.sample_patches(VOLUME, *poses, SIZE), ops.sample_patches(VOLUME, CENTER, MATRIX, SIZE)
    )


def test_compiles_and_exports():
    def cut(volume, center, matrix):
        return ops.sample_patches(volume, center, matrix, SIZE, shift=1.0, fill=0.5)

    compiled = torch.compile(cut, fullgraph=True, backend="aot_eager", dynamic=True)
    args = (VOLUME, CENTER + 0.3, 0.8 * MATRIX)
    assert torch.equal(compiled(*args), cut(*args))
    fewer = (VOLUME[:, 1:], args[1][:1], args[2][:1])
    assert torch.equal(compiled(*fewer), cut(*fewer))

    class Cut(torch.nn.Module):
        def forward(self, volume, center, matrix):
            return cut(volume, center, matrix)

    assert torch.equal(torch.export.export(Cut(), args).module()(*args), cut(*args))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((VOLUME, CENTER.long(), MATRIX, SIZE), TypeError, "center_vox must be a floating tensor"),
        ((VOLUME, CENTER, MATRIX.long(), SIZE), TypeError, "matrix must be a floating tensor; got"),
        ((VOLUME, CENTER[0], MATRIX, SIZE), ValueError, r"center_vox must be \(P, 3\); got \(3,\)"),
        (
            (VOLUME, CENTER, MATRIX[:1], SIZE),
            ValueError,
            r"matrix must be \(2, 3, 3\), one for each center; got \(1, 3, 3\)",
        ),
        ((VOLUME, CENTER, MATRIX[0], SIZE), ValueError, r"matrix must be .*; got \(3, 3\)"),
        ((VOLUME, CENTER, MATRIX, (2, 2)), ValueError, r"entry per space axis \(3\); got \(2, 2\)"),
        ((VOLUME, CENTER, MATRIX, (2, 0, 2)), ValueError, "size must be at least 1 on every axis"),
        ((VOLUME, CENTER, MATRIX, (2.0, 2, 2)), TypeError, "size must be integers; got"),
        ((VOLUME, CENTER[:, :1], MATRIX, (2,)), ValueError, "size must have 2 or 3 entries"),
        ((VOLUME[0, 0], CENTER, MATRIX, SIZE), ValueError, "as many as center_vox has columns"),
        ((VOLUME.to(torch.complex64), CENTER, MATRIX, SIZE), TypeError, "volumes must be real"),
        (([VOLUME[0]], CENTER, MATRIX, SIZE), ValueError, "center_vox must have one column per"),
    ],
)
def test_messages(arguments, error, message):
    with pytest.raises(error, match=rf"^sample_patches: .*{message}"):
        ops.sample_patches(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"volume_index": torch.tensor([0, 1])},
            ValueError,
            "volume_index must be 0 to 0; got values from 0 to 1",
        ),
        ({"volume_index": torch.tensor([0])}, ValueError, r"one entry per patch \(2\)"),
        ({"volume_index": torch.tensor([0.0, 0])}, TypeError, "volume_index must be an integer"),
        ({"mode": "bilinear"}, ValueError, "mode must be one of linear, nearest, cubic; got 'bil"),
        ({"shift": torch.zeros(3)}, ValueError, r"shift must be a number, \(2,\) or \(1, 2\)"),
        ({"scale": "2"}, TypeError, "scale must be a number or tensor; got str"),
        ({"dtype": torch.complex64}, TypeError, "dtype must be a real torch.dtype"),
        (
            {"mode": "cubic", "dtype": torch.uint8},
            TypeError,
            "dtype must be floating with mode cubic; got torch.uint8",
        ),
    ],
)
def test_option_messages(options, error, message):
    with pytest.raises(error, match=f"^sample_patches: {message}|^sample_patches: .*{message}"):
        ops.sample_patches(VOLUME, CENTER, MATRIX, SIZE, **options)
