"""augment_intensity: its noise against published numbers and in distribution, its steps against
SciPy, torch's interpolation and the formulas of batchgenerators."""

import math

import pytest
import torch
from scipy import stats
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from cmrfast import ops
from cmrfast.ops._op import OPS
from cmrfast.ops._philox import philox, words_of
from cmrfast.ops.augment_intensity import STEPS, _pack

NAN = math.nan
ONE = torch.tensor([3])  # the number of a single sample
FULL = 0xFFFFFFFF


def images(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


def step(x, **parameters):
    """One step of all samples and channels alike."""
    values = {
        name: torch.tensor(value, dtype=torch.float64).expand(
            *x.shape[:2], *torch.tensor(value).shape
        )
        for name, value in parameters.items()
    }
    return ops.augment_intensity(x, 0, torch.arange(len(x)), **values)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known answers of Random123, for philox4x32 of ten rounds
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((FULL,) * 4, (FULL,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_numbers(counter, key, words):
    assert tuple(x.item() for x in philox(tuple(map(torch.tensor, counter)), key)) == words


def test_the_kernels_noise_is_made_of_these_words():
    seed, sample = 2**62 + 12345, torch.tensor([-(2**40) - 7])
    noise = ops.augment_intensity(
        images(1, 3, 5, 7) * 0, seed, sample, noise_sd=torch.ones(1, dtype=torch.float64)
    )
    for channel, values in enumerate(noise[0].flatten(1)):
        for group, numbers in enumerate(values[:32].view(8, 4)):
            counter = (group, channel, *words_of(sample.item()))
            words = [x.item() for x in philox(tuple(map(torch.tensor, counter)), words_of(seed))]
            pairs = zip(numbers.view(2, 2).tolist(), (words[:2], words[2:]), strict=True)
            for (cosine, sine), (first, second) in pairs:
                uniform = math.exp(-(cosine**2 + sine**2) / 2)
                turn = math.atan2(sine, cosine) / (2 * math.pi) % 1
                assert round(uniform * 2**32 - 0.5) == first
                assert round(turn * 2**32) % 2**32 == second


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_noise_is_standard_normal_and_independent(dtype):
    noise = step(torch.zeros(2, 2, 90, 100, dtype=dtype), noise_sd=1.0)
    for values in noise.flatten(0, 1).flatten(1).double():
        assert stats.kstest(values.numpy(), "norm").pvalue > 1e-3
        n = len(values)
        assert abs(values.mean()) < 4 / n**0.5
        assert abs(values.var() - 1) < 4 * (2 / n) ** 0.5
        assert abs((values**3).mean()) < 4 * (15 / n) ** 0.5
        assert abs((values**4).mean() - 3) < 4 * (96 / n) ** 0.5
        for lag in range(1, 6):
            assert abs((values[lag:] * values[:-lag]).mean()) < 4 / n**0.5
    correlation = torch.corrcoef(noise.flatten(0, 1).flatten(1).double())
    assert (correlation - torch.eye(4, dtype=torch.float64)).abs().max() < 4 / 9000**0.5


def test_noise_of_all_dtypes_is_the_same_up_to_rounding():
    exact = step(images(1, 2, 41, 43) * 0, noise_sd=1.0)
    for dtype, near in ((torch.float32, 2e-4), (torch.float16, 5e-3), (torch.bfloat16, 3e-2)):
        noise = step(torch.zeros(1, 2, 41, 43, dtype=dtype), noise_sd=1.0)
        assert noise.dtype == dtype
        assert (noise.double() - exact).abs().max() < near


@pytest.mark.parametrize("shape", [(6, 2, 20, 24), (3, 1, 40, 41, 43)])
def test_same_bits_for_any_split_of_the_batch(shape):
    x, sample = images(*shape, dtype=torch.float32), torch.arange(shape[0]) * 2**35
    parameters = all_steps(x)
    whole = ops.augment_intensity(x, 9, sample, **parameters)
    for b in reversed(range(shape[0])):
        own = {name: values[b : b + 1] for name, values in parameters.items()}
        alone = ops.augment_intensity(x[b : b + 1], 9, sample[b : b + 1], **own)
        assert torch.equal(alone[0], whole[b])


def test_seed_sample_and_channel_change_the_noise():
    x, sd = torch.zeros(1, 2, 8, 8), torch.ones(1)
    first = ops.augment_intensity(x, 0, ONE, noise_sd=sd)
    assert not torch.equal(first[:, 0], first[:, 1])
    for seed, sample in ((1, ONE), (2**32, ONE), (-1, ONE), (0, ONE + 1), (0, ONE + 2**32)):
        assert not torch.equal(ops.augment_intensity(x, seed, sample, noise_sd=sd), first)


@pytest.mark.parametrize(
    ("shape", "sd"),
    [
        ((20, 24), (1.0, 1.0)),
        ((20, 24), (0.5, 2.3)),
        ((7, 9, 11), (0.7, 1.3, 0.2)),
        ((5, 70, 6), (1.0, 3.0, 0.0)),
        ((2, 3, 4), (3.0, 2.0, 5.0)),  # wider than the image, reflected again and again
    ],
)
def test_blur_equals_scipy(shape, sd):
    x = images(1, 2, *shape)
    blurred = step(x, blur_sd_vox=sd)
    for values, ours in zip(x[0], blurred[0], strict=True):
        expected = gaussian_filter(values.numpy(), sd, mode="reflect", truncate=3.0)
        torch.testing.assert_close(ours, torch.from_numpy(expected), rtol=0, atol=1e-12)


def test_blur_of_one_axis_and_of_none():
    x = images(1, 1, 6, 7, 8)
    assert torch.equal(step(x, blur_sd_vox=(NAN, NAN, NAN)), x)
    torch.testing.assert_close(
        step(x, blur_sd_vox=(NAN, 1.5, NAN)), step(x, blur_sd_vox=(0.0, 1.5, 0.1))
    )
    torch.testing.assert_close(step(x, blur_sd_vox=1.2), step(x, blur_sd_vox=(1.2, 1.2, 1.2)))


def low_resolution(x, zooms):
    """As batchgeneratorsv2 simulates it."""
    coarse = [max(round(n * zoom), 1) for n, zoom in zip(x.shape[2:], zooms, strict=True)]
    mode = "bilinear" if x.dim() == 4 else "trilinear"
    return F.interpolate(F.interpolate(x, coarse, mode="nearest-exact"), x.shape[2:], mode=mode)


@pytest.mark.parametrize("zoom", [0.01, 0.25, 0.37, 0.5, 0.55, 0.75, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(20, 23), (9, 12, 17), (64, 96, 5)])
def test_low_resolution_equals_torch(shape, zoom):
    x = images(2, 2, *shape)
    zooms = (zoom, *[1 - zoom / 2] * (len(shape) - 1))
    torch.testing.assert_close(step(x, low_res=zooms), low_resolution(x, zooms))


@pytest.mark.parametrize("factor", [0.3, 0.75, 1.0, 1.25, 4.0])
def test_contrast_is_about_the_mean_within_the_range(factor):
    x = images(2, 3, 20, 24) + 5
    for values, ours in zip(x.flatten(0, 1), step(x, contrast=factor).flatten(0, 1), strict=True):
        changed = (values - values.mean()) * factor + values.mean()
        torch.testing.assert_close(ours, changed.clamp(values.min(), values.max()))


def gamma_transform(x, exponent):
    """As batchgenerators does it, with ``retain_stats``."""
    low, span = x.min(), x.max() - x.min()
    y = ((x - low) / span.clamp(min=1e-7)) ** exponent * span + low
    return (y - y.mean()) / y.std().clamp(min=1e-8) * x.std() + x.mean()


@pytest.mark.parametrize("exponent", [0.5, 0.7, 1.0, 1.5, 3.0])
@pytest.mark.parametrize("shape", [(20, 24), (5, 6, 7)])
def test_gamma_keeps_mean_and_sd(shape, exponent):
    x = 3 * images(2, 2, *shape) - 7
    changed, inverted = step(x, gamma=exponent), step(x, gamma_inverted=exponent)
    for b in range(2):
        for c in range(2):
            torch.testing.assert_close(changed[b, c], gamma_transform(x[b, c], exponent))
            torch.testing.assert_close(inverted[b, c], -gamma_transform(-x[b, c], exponent))
            torch.testing.assert_close(changed[b, c].std(), x[b, c].std())


@pytest.mark.parametrize("name", ["contrast", "gamma", "gamma_inverted"])
def test_an_image_of_one_value_stays(name):
    x = torch.full((1, 1, 5, 6), 2.5)
    torch.testing.assert_close(step(x, **{name: 1.7}), x)


def test_statistics_are_exact_far_from_zero():
    x = images(1, 1, 40, 50) + 1e7
    torch.testing.assert_close(
        step(x, gamma=1.5)[0, 0], gamma_transform(x[0, 0] - 1e7, 1.5) + 1e7, rtol=0, atol=1e-6
    )


def all_steps(x):
    """Parameters of all steps, other ones for each sample."""
    b = torch.arange(len(x)) / len(x)
    return {
        "noise_sd": 0.1 + b,
        "blur_sd_vox": (0.5 + b)[:, None, None].expand(*x.shape[:2], x.dim() - 2),
        "gain": 0.9 + b,
        "bias": b - 0.5,
        "contrast": (0.75 + b / 2)[:, None].expand(x.shape[:2]),
        "low_res": 1 - b / 2,
        "gamma_inverted": 0.7 + b,
        "gamma": 1.5 - b,
    }


@pytest.mark.parametrize("shape", [(3, 2, 20, 24), (2, 1, 30, 50, 60)])
def test_steps_follow_one_another(shape):
    x, sample = images(*shape), torch.arange(shape[0])
    y, parameters = x, all_steps(x)
    for name in STEPS:
        y = ops.augment_intensity(y, 4, sample, **{name: parameters[name]})
    together = ops.augment_intensity(x, 4, sample, **parameters)
    torch.testing.assert_close(together, y, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("shape", [(2, 2, 9, 11), (2, 2, 4, 5, 6)])
def test_nan_leaves_a_step_out(name, shape):
    x = images(*shape, dtype=torch.float32)
    values = torch.tensor([[0.5, NAN], [NAN, NAN]])
    augmented = ops.augment_intensity(x, 0, torch.arange(2), **{name: values})
    assert not torch.equal(augmented[0, 0], x[0, 0])
    assert torch.equal(augmented[0, 1], x[0, 1])
    assert torch.equal(augmented[1], x[1])
    # Together with a step that all take, in whatever pass.
    other = {"gamma": torch.full((2,), 1.3)} if name != "gamma" else {"gain": torch.full((2,), 2.0)}
    both = ops.augment_intensity(x, 0, torch.arange(2), **{name: values}, **other)
    alone = ops.augment_intensity(x, 0, torch.arange(2), **other)
    torch.testing.assert_close(both[1], alone[1])


def test_without_steps_the_images_are_copied():
    x = images(2, 1, 5, 6, dtype=torch.float16)
    augmented = ops.augment_intensity(x, 0, torch.arange(2))
    assert torch.equal(augmented, x)
    assert augmented.data_ptr() != x.data_ptr()


def test_large_images_equal_the_reference():
    x = images(2, 1, 40, 45, 50, dtype=torch.float32)  # tasks of chunks and of rows
    parameters = all_steps(x)
    packed = _pack(dict(zip(STEPS, map(parameters.get, STEPS), strict=True)), x)
    args = (x, 5, torch.arange(2), packed, 0xFF)
    op = OPS["augment_intensity"]
    torch.testing.assert_close(op(*args), op.reference(*args), rtol=1e-5, atol=1e-5)


def test_values_out_of_range_do_no_harm_where_they_are_not_checked():
    x = images(4, 1, 6, 7, dtype=torch.float32)
    packed = torch.full((4, 1, 10), NAN, dtype=torch.float64)
    packed[:, 0, 1] = torch.tensor([1e30, -1.0, math.inf, 4e3])
    packed[:, 0, 6:8] = torch.tensor([[1e30], [-1.0], [0.0], [math.inf]])
    args = (x, 0, torch.arange(4), packed, 0b100010)
    op = OPS["augment_intensity"]
    torch.testing.assert_close(op(*args), op.reference(*args), rtol=1e-5, atol=1e-5)


def test_compiles_and_exports():
    class Call(torch.nn.Module):
        def forward(self, x, sample, values):
            return ops.augment_intensity(
                x, 3, sample, noise_sd=values, low_res=values, gamma=values
            )

    args = (images(2, 1, 9, 10, dtype=torch.float32), torch.arange(2), torch.tensor([0.5, NAN]))
    expected = Call()(*args)
    compiled = torch.compile(Call(), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*args), expected)
    assert torch.equal(torch.export.export(Call(), args).module()(*args), expected)
    compiled(args[0], args[1], -args[2])  # values are not read while compiling


BATCH = torch.zeros(2, 3, 4, 5)
TWO = torch.ones(2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": BATCH.int()}, TypeError, "images must be a floating tensor; got torch.int32"),
        ({"images": BATCH[0]}, ValueError, r"images must be \(B, C, \*S\) with 2 or 3 space axes"),
        ({"images": BATCH[..., :0]}, ValueError, "space axes of images must be at least 1"),
        (
            {"images": BATCH.clone().requires_grad_()},
            ValueError,
            "has no gradient; detach images, which require one",
        ),
        ({"seed": 0.5}, TypeError, "seed must be an int; got float"),
        ({"seed": 2**63}, ValueError, "seed must fit torch.int64; got 9223372036854775808"),
        ({"sample": TWO}, TypeError, "sample must be an integer tensor; got torch.float32"),
        ({"sample": TWO.int()}, TypeError, "sample must be int64; got torch.int32"),
        ({"sample": torch.arange(3)}, ValueError, r"sample must be \(2,\); got \(3,\)"),
        ({"gain": 2.0}, TypeError, "gain must be a floating tensor; got float"),
        ({"gain": TWO.long()}, TypeError, "gain must be a floating tensor; got torch.int64"),
        ({"gain": torch.ones(3)}, ValueError, r"gain must be \(2,\) or \(2, 3\); got \(3,\)"),
        (
            {"low_res": torch.ones(2, 3, 3)},
            ValueError,
            r"low_res must be \(2,\) or \(2, 3\) or \(2, 3, 2\); got \(2, 3, 3\)",
        ),
        ({"noise_sd": -TWO}, ValueError, "noise_sd must be finite and at least 0 or NaN; got -1.0"),
        ({"blur_sd_vox": 513 * TWO}, ValueError, "blur_sd_vox must be from 0 to 512 or NaN; got"),
        ({"bias": TWO / 0}, ValueError, "bias must be finite or NaN; got inf"),
        ({"contrast": TWO / 0}, ValueError, "contrast must be finite or NaN; got inf"),
        ({"low_res": 0 * TWO}, ValueError, "low_res must be above 0 and at most 1 or NaN; got 0.0"),
        ({"low_res": 1.5 * TWO}, ValueError, "low_res must be above 0 and at most 1 or NaN; got"),
        ({"gamma": 0 * TWO}, ValueError, "gamma must be finite and above 0 or NaN; got 0.0"),
        ({"gamma_inverted": -TWO}, ValueError, "gamma_inverted must be finite and above 0 or NaN"),
        (
            {"gain": torch.ones(2, device="meta")},
            ValueError,
            "all tensors must lie on one device; got images on cpu",
        ),
    ],
)
def test_messages(change, error, message):
    args = {"images": BATCH, "seed": 0, "sample": torch.arange(2)}
    with pytest.raises(error, match=f"^augment_intensity: {message}"):
        ops.augment_intensity(**(args | change))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("low_res", [None, [[torch.nan, torch.nan], [0.5, torch.nan]]])
def test_a_voxel_that_is_not_finite_stays_alone_where_nothing_is_coarser(bad, low_res):
    images = torch.rand(2, 1, 7, 7)
    images[:, 0, 3, 3] = bad
    options = {"gain": torch.tensor([2.0, 2.0])}
    if low_res is not None:
        options["low_res"] = torch.tensor(low_res)[:, None]
    augmented = ops.augment_intensity(images, 0, torch.tensor([0, 1]), **options)
    assert (~augmented[0].isfinite()).sum() == 1
