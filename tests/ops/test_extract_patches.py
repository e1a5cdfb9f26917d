"""What a reference cannot show of extract_patches and VolumeStore."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from cmrfast import ops
from cmrfast.ops._backend import STATUS
from cmrfast.ops._op import OPS

VOLUME = torch.arange(2 * 5 * 6 * 7, dtype=torch.float32).view(2, 5, 6, 7)
START = torch.tensor([[0, 0, 0], [2, 1, 3]])
PLANE = torch.arange(2 * 9 * 11, dtype=torch.float32).view(2, 9, 11)


def test_inside_patches_are_slices():
    patches = ops.extract_patches(VOLUME, START, (2, 3, 4))
    assert torch.equal(patches[0], VOLUME[:, :2, :3, :4])
    assert torch.equal(patches[1], VOLUME[:, 2:4, 1:4, 3:7])


def test_flips_mirror_the_patch():
    flips = torch.tensor([[True, False, False], [False, True, True]])
    plain = ops.extract_patches(VOLUME, START, (2, 3, 4))
    flipped = ops.extract_patches(VOLUME, START, (2, 3, 4), flips=flips)
    assert torch.equal(flipped[0], plain[0].flip(1))
    assert torch.equal(flipped[1], plain[1].flip(2, 3))


@pytest.mark.parametrize("far", [2**62, -(2**62), 1000])
def test_far_outside_is_fill(far):
    patches = ops.extract_patches(VOLUME, torch.full((1, 3), far), (2, 2, 2), fill=-7.0)
    assert torch.equal(patches, torch.full((1, 2, 2, 2, 2), -7.0))


def test_shift_and_scale_per_volume_and_channel():
    volumes = torch.stack((VOLUME, VOLUME + 1))
    shift, scale = torch.rand(2, 2), torch.rand(2, 2) + 1
    index = torch.tensor([1, 0])
    options = {"volume_index": index, "shift": shift, "scale": scale}
    patches = ops.extract_patches(volumes, START, (2, 2, 2), **options)
    plain = ops.extract_patches(volumes, START, (2, 2, 2), volume_index=index)
    expected = (plain - shift[index][..., None, None, None]) * scale[index][..., None, None, None]
    torch.testing.assert_close(patches, expected)


def test_integers_round_half_to_even_and_saturate():
    volume = torch.tensor([[[0.5, 1.5, 2.5, -3.0, 400.0, torch.nan, torch.inf]]])
    patch = ops.extract_patches(volume, torch.zeros(1, 2).long(), (1, 7), dtype=torch.uint8)
    assert patch.flatten().tolist() == [0, 2, 2, 0, 255, 0, 255]


def test_integers_beyond_float_keep_their_value():
    volume = torch.full((1, 2, 2), 2**62 + 1)
    patch = ops.extract_patches(volume, torch.zeros(1, 2).long(), (2, 2), dtype=torch.int64)
    assert (patch == 2**62 + 1).all()


def test_store_and_list_and_batch_agree():
    volumes = [torch.randn(1, 5, 6), torch.randn(1, 8, 3)]
    start, index = torch.tensor([[0, 0], [3, 1], [-1, 2]]), torch.tensor([0, 1, 1])
    store = ops.VolumeStore(volumes)
    from_store = ops.extract_patches(store, start, (3, 2), volume_index=index)
    assert torch.equal(from_store, ops.extract_patches(volumes, start, (3, 2), volume_index=index))
    single = ops.extract_patches(volumes[1], start[1:], (3, 2))
    assert torch.equal(from_store[1:], single)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype):
    patches = ops.extract_patches(VOLUME.to(dtype), START, (2, 2, 2), dtype=dtype, scale=0.5)
    assert patches.dtype == dtype
    torch.testing.assert_close(patches[0], (VOLUME.to(dtype) * 0.5)[:, :2, :2, :2])


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_extraction_and_its_gradient_are_adjoint(seed):
    torch.manual_seed(seed)
    volume = torch.randn(2, 5, 6, 7, dtype=torch.float64, requires_grad=True)
    start, flips = torch.randint(-3, 7, (6, 3)), torch.rand(6, 3) < 0.5
    patches = ops.extract_patches(volume, start, (2, 3, 4), flips=flips, dtype=torch.float64)
    pull = torch.randn_like(patches)
    patches.backward(pull)
    torch.testing.assert_close((volume.grad * volume).sum(), (pull * patches).sum())


def test_compiles_and_exports():
    def cut(volume, start):
        return ops.extract_patches(volume, start, (2, 3, 4), shift=1.0, fill=0.5)

    compiled = torch.compile(cut, fullgraph=True, backend="aot_eager", dynamic=True)
    assert torch.equal(compiled(VOLUME, START), cut(VOLUME, START))
    assert torch.equal(compiled(VOLUME[:, 1:], START[:1]), cut(VOLUME[:, 1:], START[:1]))

    class Cut(torch.nn.Module):
        def forward(self, volume, start):
            return cut(volume, start)

    exported = torch.export.export(Cut(), (VOLUME, START)).module()
    assert torch.equal(exported(VOLUME, START), cut(VOLUME, START))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((VOLUME, START.float(), (2, 2, 2)), TypeError, "start_vox must be an integer tensor"),
        ((VOLUME, START[0], (2, 2, 2)), ValueError, r"start_vox must be \(P, 3\); got \(3,\)"),
        ((VOLUME, START, (32, 32)), ValueError, r"one entry per space axis \(3\); got \(32, 32\)"),
        ((VOLUME, START, (2, 0, 2)), ValueError, "size must be at least 1 on every axis"),
        ((VOLUME, START[:, :1], (2,)), ValueError, "size must have 2 or 3 entries"),
        ((VOLUME[0, 0], START, (2, 2, 2)), ValueError, r"volumes must be \(C, \*S\)"),
        ((VOLUME.to(torch.complex64), START, (2, 2, 2)), TypeError, "volumes must be real"),
        (([VOLUME, VOLUME[:1]], START, (2, 2, 2)), ValueError, "one dtype and number of channels"),
        (([VOLUME[0]], START, (2, 2, 2)), ValueError, "one column per space axis"),
        (([], START, (2, 2, 2)), ValueError, "at least one tensor"),
    ],
)
def test_messages(arguments, error, message):
    with pytest.raises(error, match=message):
        ops.extract_patches(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"volume_index": torch.tensor([0, 1])},
            ValueError,
            "must be 0 to 0; got values from 0 to 1",
        ),
        ({"volume_index": torch.tensor([0])}, ValueError, r"one entry per patch \(2\)"),
        ({"volume_index": torch.tensor([0.0, 0])}, TypeError, "volume_index must be an integer"),
        ({"flips": torch.zeros(2, 3)}, ValueError, "flips must be a bool tensor"),
        ({"shift": torch.zeros(3)}, ValueError, r"shift must be a number, \(2,\) or \(1, 2\)"),
        ({"scale": "2"}, TypeError, "scale must be a number or tensor; got str"),
        ({"dtype": torch.complex64}, TypeError, "dtype must be a real torch.dtype"),
        ({"flips": [[True] * 3] * 2}, TypeError, "flips must be a tensor; got list"),
        ({"out": 5}, TypeError, "out must be a tensor; got int"),
        ({"fill": "0"}, TypeError, "fill must be a number; got str"),
        ({"fill": 2**53 + 1}, ValueError, "fill must be a number that float64 holds; got 9007"),
    ],
)
def test_option_messages(options, error, message):
    with pytest.raises(error, match=message):
        ops.extract_patches(VOLUME, START, (2, 2, 2), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int16, torch.bool])
def test_patches_are_written_into_a_given_tensor(dtype):
    volume, start = 9 * torch.randn(2, 9, 11), torch.tensor([[-1, 2], [4, 5], [30, 0]])
    out = torch.full((3, 2, 4, 6), 7).to(dtype)
    found = ops.extract_patches(volume, start, (4, 6), fill=-2, out=out)
    assert found is out
    assert torch.equal(out, ops.extract_patches(volume, start, (4, 6), fill=-2, dtype=dtype))


def test_a_given_tensor_compiles():
    def both(volume, start, out):
        return ops.extract_patches(volume, start, (4, 6), out=out) + 1

    volume, start, out = torch.randn(2, 9, 11), torch.tensor([[3, 2]]), torch.zeros(1, 2, 4, 6)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    result = compiled(volume, start, out)
    assert torch.equal(out, volume[None, :, 3:7, 2:8])
    assert torch.equal(result, out + 1)


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        (torch.zeros(1, 2, 4, 5), {}, r"must be a contiguous tensor \(1, 2, 4, 6\); got torch.fl"),
        (
            torch.zeros(1, 2, 6, 4).mT,
            {},
            r"must be a contiguous .* strides \(48, 24, 1, 4\)",
        ),
        (torch.zeros(1, 2, 4, 6), {"dtype": torch.uint8}, "must be a contiguous torch.uint8"),
        (PLANE.view(-1)[:48].view(1, 2, 4, 6), {}, "must not share memory with volumes"),
        (torch.zeros(1, 2, 4, 6, requires_grad=True), {}, "a result in out has no gradient"),
    ],
)
def test_messages_about_a_given_tensor(out, options, message):
    with pytest.raises(ValueError, match=message):
        ops.extract_patches(PLANE, torch.tensor([[3, 2]]), (4, 6), out=out, **options)


def test_a_given_tensor_must_have_a_real_dtype():
    out = torch.zeros(1, 2, 4, 6, dtype=torch.complex64)
    with pytest.raises(TypeError, match="dtype must be a real"):
        ops.extract_patches(PLANE, torch.tensor([[3, 2]]), (4, 6), out=out)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_unsigned_volumes_and_patches(dtype):
    values = [0, 1, 40_000, torch.iinfo(dtype).max]
    volume, start = torch.tensor(values, dtype=dtype).view(1, 2, 2), torch.tensor([[0, -1]])
    patches = ops.extract_patches(volume, start, (2, 3), dtype=torch.float64)
    assert patches[0, 0, :, 1:].flatten().tolist() == [float(v) for v in values]
    patches = ops.extract_patches(volume, start, (2, 3), fill=7, dtype=dtype)
    assert patches.flatten().tolist() == [7, *values[:2], 7, *values[2:]]
    scaled = ops.extract_patches(volume.double(), start, (2, 2), scale=-1.0, fill=9e99, dtype=dtype)
    assert scaled.flatten().tolist() == [values[3], 0, values[3], 0]
    assert ops.window_counts(volume[0], start, (2, 2)).tolist() == [1]
    assert ops.VolumeStore([volume, volume]).dtype == dtype


def test_bool_patches_hold_ones():
    patches = ops.extract_patches(
        torch.tensor([[[0.0, 1, 2, 0.5]]]), torch.tensor([[0, 0]]), (1, 4), dtype=torch.bool
    )
    assert patches.view(torch.uint8).flatten().tolist() == [0, 1, 1, 0]


def test_sizes_and_factors_of_a_wrong_type():
    for size in ((2.0, 2, 2), 2):
        with pytest.raises(TypeError, match=r"^extract_patches: size must be .*integers; got"):
            ops.extract_patches(VOLUME, START, size)
    complex_scale = torch.ones(2, dtype=torch.complex64)
    with pytest.raises(TypeError, match="scale must be a real tensor; got"):
        ops.extract_patches(VOLUME, START, (2, 2, 2), scale=complex_scale)


def test_a_gradient_of_a_batch_that_was_overwritten_is_refused():
    factor, out = torch.ones(2, 2, 2, 2, 2, requires_grad=True), torch.empty(2, 2, 2, 2, 2)
    ops.extract_patches(VOLUME, START, (2, 2, 2), out=out)
    loss = (factor * out).sum()
    ops.extract_patches(2 * VOLUME, START, (2, 2, 2), out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_numbers_of_numpy_are_numbers():
    plain = ops.extract_patches(VOLUME, START, (2, 2, 2), shift=0.5, scale=2.0, fill=3.0)
    given = {"shift": np.float32(0.5), "scale": np.float64(2), "fill": np.int64(3)}
    assert torch.equal(ops.extract_patches(VOLUME, START, (2, 2, 2), **given), plain)


def test_fake_tensors_are_not_read():
    index = torch.tensor([0, 0])
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(x) for x in (VOLUME, START, index)]
        patches = ops.extract_patches(fake[0], fake[1], (2, 3, 4), volume_index=fake[2])
    assert patches.shape == (2, 2, 2, 3, 4)


@pytest.mark.skipif(STATUS.cpu_level is None, reason="native kernels are not in use")
def test_kernel_refuses_starts_of_another_dtype():
    none, no_index = torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.int64)
    table, flips = torch.empty(0, 4, dtype=torch.int64), torch.empty(0, 3, dtype=torch.bool)
    source = (VOLUME.flatten(), table, VOLUME.shape[1:], START.int(), no_index, flips, none, none)
    with pytest.raises(RuntimeError, match="starts and indices must be int64"):
        OPS["extract_patches"].call(*source, 2, (2, 2, 2), 0.0, torch.float32)
