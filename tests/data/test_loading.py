"""Draws, samplers, augmentation and prefetching: functions of what they are for, nothing else."""

import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrfast import ops
from cmrfast.data.augment import Ranges, augment, random_thetas
from cmrfast.data.draws import order, uniforms
from cmrfast.data.patches import LesionSampler, batches
from cmrfast.data.prefetch import Prefetch


def test_draws_are_uniform_and_independent():
    draws = uniforms(1, 2, torch.arange(20000), 4)
    assert draws.min() >= 0
    assert draws.max() < 1
    torch.testing.assert_close(draws.mean(0), torch.full((4,), 0.5).double(), rtol=0, atol=0.01)
    expected = torch.eye(4, dtype=torch.float64) / 12
    torch.testing.assert_close(draws.T.cov(), expected, rtol=0, atol=2e-3)
    counts = torch.histc(draws.float(), 50, 0, 1)
    assert (counts - 1600).abs().max() < 6 * 40
    lag = torch.stack((draws[:-1, 0], draws[1:, 0])).corrcoef()[0, 1]
    assert lag.abs() < 0.03


@settings(max_examples=30, deadline=None)
@given(st.integers(-(2**62), 2**62), st.integers(0, 2**40), st.integers(0, 2**50))
def test_a_draw_depends_on_its_sample_alone(seed, epoch, sample):
    alone = uniforms(seed, epoch, torch.tensor([sample]), 3)
    among = uniforms(seed, epoch, torch.tensor([5, sample, 9]), 3)
    assert torch.equal(alone[0], among[1])
    for other in (
        uniforms(seed + 1, epoch, torch.tensor([sample]), 3),
        uniforms(seed, epoch + 1, torch.tensor([sample]), 3),
        uniforms(seed, epoch, torch.tensor([sample + 1]), 3),
    ):
        assert not torch.equal(alone, other)


def test_an_epoch_is_a_permutation_of_its_own():
    first, second = order(0, 0, 1000), order(0, 1, 1000)
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert (first != second).float().mean() > 0.9
    parts = batches(0, 0, 1000, 32, drop_last=True)
    assert [len(p) for p in parts] == [32] * 31
    assert len(batches(0, 0, 7, 32, drop_last=True)[0]) == 7
    assert torch.equal(torch.cat(batches(0, 0, 1000, 32, drop_last=False)), first)


def test_the_order_is_independent_of_the_samples_draws():
    shuffled = order(3, 5, 20000)
    draws = uniforms(3, 5, shuffled, 4)
    place = torch.linspace(0, 1, len(shuffled)).double()
    for draw in draws.T:
        assert torch.stack((place, draw)).corrcoef()[0, 1].abs() < 0.03


def masks():
    region = torch.zeros(30, 40, 20, dtype=torch.bool)
    region[5:25, 5:35, 3:17] = True
    lesion = torch.zeros_like(region)
    lesion[10:12, 30:33, 4] = True
    return [lesion, torch.zeros_like(region)], [region, region]


def test_lesion_patches_hold_lesions_as_often_as_asked():
    targets, regions = masks()
    sampler = LesionSampler(targets, regions, (7, 8, 5), on_target=0.8, per_patient=2000)
    windows = sampler.windows(0, torch.arange(len(sampler)))
    share = (windows.volume_index == 0).float().mean().item()
    assert share == pytest.approx(0.5, abs=0.04)
    found = ops.window_counts(
        torch.stack(targets), windows.start_vox, (7, 8, 5), volume_index=windows.volume_index
    )
    held = (found > 0)[windows.volume_index == 0].float().mean().item()
    assert held == pytest.approx(0.8, abs=0.04)
    assert (found[windows.volume_index == 1] == 0).all()


def test_patches_elsewhere_are_centred_in_the_region():
    targets, regions = masks()
    sampler = LesionSampler(targets, regions, (7, 8, 5), on_target=0.0, per_patient=500)
    windows = sampler.windows(3, torch.arange(1000))
    center = windows.start_vox + torch.tensor([3, 4, 2])
    assert regions[0][tuple(center.T)].all()
    later = sampler.windows(3, torch.tensor([999, 5]))
    assert torch.equal(later.start_vox, windows.start_vox[[999, 5]])


def test_patients_without_any_target():
    _, regions = masks()
    empty = [torch.zeros_like(region) for region in regions]
    start = LesionSampler(empty, regions, (7, 8, 5)).windows(0, torch.arange(100)).start_vox
    center = start + torch.tensor([3, 4, 2])
    assert regions[0][tuple(center.T)].all()


def test_sampler_messages():
    targets, regions = masks()
    with pytest.raises(ValueError, match="one of each per patient; got 2 and 1"):
        LesionSampler(targets, regions[:1], (3, 3, 3))
    with pytest.raises(ValueError, match=r"on_target must be in \[0, 1\]"):
        LesionSampler(targets, regions, (3, 3, 3), on_target=2)
    with pytest.raises(ValueError, match=r"regions must not be empty; patients \[1\] are"):
        LesionSampler(targets, [regions[0], targets[1]], (3, 3, 3))
    with pytest.raises(ValueError, match="batch must be >= 1"):
        batches(0, 0, 4, 0, drop_last=True)


def disc(rows, columns):
    i, j = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return (((i - 20) ** 2 + (j - 42) ** 2) < 64).float()[None, None]


def test_turning_a_long_image_keeps_a_disc_a_disc():
    image = disc(48, 96)
    samples = torch.arange(40)
    turned, label = augment(
        image.expand(40, -1, -1, -1),
        image.long().expand(40, -1, -1, -1),
        Ranges(rotate_deg=30),
        seed=0,
        epoch=0,
        samples=samples,
    )
    area = turned.sum((1, 2, 3))
    torch.testing.assert_close(area, image.sum().expand(40), rtol=0.02, atol=0)
    rows = (turned[:, 0].amax(2) > 0.5).sum(1)
    columns = (turned[:, 0].amax(1) > 0.5).sum(1)
    assert ((rows - columns).abs() <= 1).all()
    assert ((turned > 0.5).long() - label).abs().float().mean() < 0.01


def test_scale_shift_and_flip_do_what_they_say():
    image = disc(48, 96)
    area = image.sum()

    def one(**ranges):
        out, _ = augment(
            image, image.long(), Ranges(**ranges), seed=3, epoch=0, samples=torch.tensor([4])
        )
        return out

    torch.testing.assert_close(one(scale=(1.2, 1.2)).sum(), area * 1.44, rtol=0.02, atol=0)
    assert torch.equal(one(flip=1.0), image.flip(2, 3))
    assert torch.equal(one(), image)
    assert torch.equal(one(rotate_deg=90, translate_vox=9, probability=0.0), image)
    moved = one(translate_vox=9.0)
    torch.testing.assert_close(moved.sum(), area, rtol=1e-3, atol=0)
    assert not torch.equal(moved, image)


@pytest.mark.parametrize("shape", [(24, 40), (12, 20, 16)])
def test_thetas_stay_in_range(shape):
    ranges = Ranges(rotate_deg=15, scale=(0.8, 1.2), translate_share=0.1, gamma=(0.7, 1.5))
    theta, gamma = random_thetas(ranges, shape, 0, 0, torch.arange(500))
    size = torch.tensor(shape[::-1], dtype=torch.float32)
    vox = theta[..., :-1] * size[:, None] / size  # back to voxels: a rotation over a scale
    factor = 1 / torch.linalg.det(vox).abs() ** (1 / len(shape))
    assert 0.8 <= factor.min() < 0.82
    assert 1.18 < factor.max() <= 1.2 + 1e-6
    assert 0.19 < theta[..., -1].abs().max() <= 0.2
    assert gamma.min() >= 0.7
    assert gamma.max() <= 1.5
    again, _ = random_thetas(ranges, shape, 0, 0, torch.tensor([123]))
    assert torch.equal(again[0], theta[123])


def test_ranges_messages():
    with pytest.raises(ValueError, match="scale must be 0 < low <= high"):
        Ranges(scale=(1.2, 0.8))
    with pytest.raises(ValueError, match="gamma must be 0 < low <= high"):
        Ranges(gamma=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"flip must be in \[0, 1\]"):
        Ranges(flip=1.5)


@pytest.mark.parametrize("threads", [1, 3])
def test_prefetched_batches_come_in_order(threads):
    def make(n):
        time.sleep(0.002 * (n % 3))
        return n

    assert list(Prefetch(make, range(30), ahead=4, threads=threads)) == list(range(30))


def test_prefetch_works_ahead_and_no_further():
    made, started = [], threading.Event()

    def make(n):
        made.append(n)
        if n == 2:
            started.set()
        return n

    batches = iter(Prefetch(make, range(100), ahead=2))
    assert next(batches) == 0
    assert started.wait(5)
    assert made == [0, 1, 2]
    batches.close()


def test_prefetch_counts_waiting_and_hands_on_errors():
    slow = threading.Event()

    def make(n):
        if n == 0:
            slow.wait(0.05)
        if n == 2:
            raise OSError("unreadable")
        return n

    prefetch = Prefetch(make, range(4), ahead=1)
    batches = iter(prefetch)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(OSError, match="unreadable"):
        next(batches)
    assert prefetch.waited_s >= 0.04
    with pytest.raises(ValueError, match="ahead and threads must be >= 1"):
        Prefetch(make, range(4), ahead=0)
