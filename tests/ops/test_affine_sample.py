"""What a reference cannot show of affine_sample."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import affine_grid, grid_sample

from cmrfast import ops
from cmrfast.ops.affine_sample import EDGES, NEAREST_EVEN, ZEROS, affine_sample_op

IDENTITY = torch.eye(3, 4)[None]


def random_theta(batch, axes):
    return torch.eye(axes, axes + 1) + 0.3 * torch.randn(batch, axes, axes + 1)


@pytest.mark.parametrize("shape", [(9, 13), (5, 9, 13), (1, 7, 4)])
@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_equals_grid_sample(shape, padding, align_corners):
    images, theta = torch.randn(3, 2, *shape), random_theta(3, len(shape))
    size = (6, 70) if len(shape) == 2 else (6, 7, 70)
    ours = ops.affine_sample(images, theta, size, padding=padding, align_corners=align_corners)
    grid = affine_grid(theta.double(), [3, 2, *size], align_corners=align_corners)
    expected = grid_sample(images.double(), grid, padding_mode=padding, align_corners=align_corners)
    torch.testing.assert_close(ours, expected.float(), rtol=1e-4, atol=1e-4)


def test_nearest_equals_grid_sample():
    images, theta = torch.randn(3, 2, 9, 13), random_theta(3, 2)
    grid = affine_grid(theta, [3, 2, 9, 13], align_corners=False)
    expected = grid_sample(images, grid, mode="nearest", align_corners=False)
    ours = ops.affine_sample(images, theta, mode="nearest")
    assert (ours == expected).float().mean() > 0.99  # apart from float32's own ties in the grid


def test_gradients_equal_grid_sample():
    images = torch.randn(2, 3, 8, 9, dtype=torch.float64, requires_grad=True)
    theta = random_theta(2, 2).double().requires_grad_()
    pull = torch.randn(2, 3, 8, 9, dtype=torch.float64)
    ops.affine_sample(images, theta).backward(pull)
    ours = images.grad, theta.grad
    images.grad = theta.grad = None
    grid = affine_grid(theta, [2, 3, 8, 9], align_corners=False)
    grid_sample(images, grid, align_corners=False).backward(pull)
    torch.testing.assert_close(ours, (images.grad, theta.grad))


def test_identity_and_shift_by_ten_pixels():
    image = torch.rand(1, 1, 224, 224)
    theta = torch.eye(2, 3)[None]
    torch.testing.assert_close(ops.affine_sample(image, theta), image)
    theta = torch.tensor([[[1.0, 0.0, 2 * 10 / 224], [0.0, 1.0, 0.0]]])
    shifted = ops.affine_sample(image, theta)
    torch.testing.assert_close(shifted[..., :-10], image[..., 10:], rtol=1e-4, atol=1e-4)
    assert (shifted[..., -9:] == 0).all()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_an_affine_and_its_inverse_cancel(seed):
    torch.manual_seed(seed)
    z, y, x = torch.meshgrid(*[torch.linspace(-1, 1, 24)] * 3, indexing="ij")
    smooth = torch.exp(-(x**2 + y**2 + z**2))[None, None]  # interpolating twice blurs it little
    theta = torch.eye(3, 4)[None] + 0.08 * torch.randn(1, 3, 4)
    inverse = torch.eye(4)[None].clone()
    inverse[:, :3] = theta
    inverse = torch.linalg.inv(inverse)[:, :3]
    there = ops.affine_sample(smooth, theta, padding="border")
    back = ops.affine_sample(there, inverse, padding="border")
    middle = (..., *[slice(8, 16)] * 3)
    torch.testing.assert_close(back[middle], smooth[middle], rtol=0, atol=0.03)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e38, -1e30])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_positions_that_are_nowhere(bad, mode):
    image = torch.ones(1, 1, 4, 5, 6) * torch.arange(6)
    theta = IDENTITY.clone()
    theta[0, 0, 3] = bad
    outside = ops.affine_sample(image, theta, mode=mode)
    assert (outside == 0).all()
    held = ops.affine_sample(image, theta, mode=mode, padding="border")
    assert (held == (5 if 0 < bad < torch.inf else 0)).all()  # index 0 for what is no number


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_sampled_in_float32(dtype):
    images, theta = torch.randn(2, 1, 8, 8).to(dtype), random_theta(2, 2)
    sampled = ops.affine_sample(images, theta)
    assert sampled.dtype == dtype
    assert torch.equal(sampled, ops.affine_sample(images.float(), theta).to(dtype))


def test_autocast_lowers_nothing():
    images, theta = torch.randn(2, 1, 8, 8), random_theta(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ops.affine_sample(images, theta), ops.affine_sample(images, theta))
        lowered = ops.affine_sample(images, theta)
    assert torch.equal(lowered, ops.affine_sample(images, theta))


def test_compiles_with_dynamic_shapes():
    compiled = torch.compile(
        lambda x, t: ops.affine_sample(x, t, padding="border"),
        fullgraph=True,
        backend="aot_eager",
        dynamic=True,
    )
    for n in (8, 9):
        images, theta = torch.randn(2, 1, n, 7), random_theta(2, 2)
        torch.testing.assert_close(
            compiled(images, theta), ops.affine_sample(images, theta, padding="border")
        )


IMAGES, THETA = torch.ones(2, 1, 4, 4), torch.eye(2, 3)[None]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (
            (IMAGES.long(), THETA),
            {},
            TypeError,
            "images must be a floating tensor; got torch.int64",
        ),
        ((IMAGES, THETA.long()), {}, TypeError, "theta must be a floating tensor"),
        ((IMAGES[0, 0], THETA), {}, ValueError, "images must be .* with 2 or 3 space axes"),
        ((IMAGES, THETA[0]), {}, ValueError, r"theta must be \(B, 2, 3\); got \(2, 3\)"),
        ((IMAGES, THETA.expand(3, 2, 3)), {}, ValueError, "theta must have 1 or 2 matrices"),
        ((IMAGES, THETA, (4,)), {}, ValueError, "size must have one entry per space axis"),
        ((IMAGES, THETA), {"mode": "cubic"}, ValueError, "mode must be one of linear, nearest"),
        ((IMAGES, THETA), {"padding": "wrap"}, ValueError, "padding must be one of zeros, border"),
    ],
)
def test_messages(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ops.affine_sample(*arguments, **options)


def test_ties_of_nearest_are_those_of_the_definition():
    image = torch.arange(10.0, dtype=torch.float64).view(1, 1, 1, 10)
    theta = torch.tensor([[[0.6, 0, -0.5], [0, 1, 0]]], dtype=torch.float64)  # voxel 7 is at 3.5
    assert ops.affine_sample(image, theta, mode="nearest")[0, 0, 0, 7] == 4
    labels = torch.randint(0, 99, (1, 1, 12, 15)).double()
    steps = torch.arange(-1.2, 1.21, 0.1, dtype=torch.float64).tolist()
    for scale, offset in itertools.product(steps, steps[::3]):
        theta = torch.tensor([[[scale, 0.1, offset], [-0.3, scale, 0.2]]], dtype=torch.float64)
        arguments = (labels, theta, (12, 15), EDGES, NEAREST_EVEN, ZEROS, 0.0)
        expected = affine_sample_op.reference(*arguments)
        assert torch.equal(affine_sample_op(*arguments), expected), (scale, offset)
