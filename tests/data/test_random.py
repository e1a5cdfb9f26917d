"""Draws: functions of seed, epoch and sample alone."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrfast.data.random import order, uniforms


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


def test_the_order_is_independent_of_the_samples_draws():
    shuffled = order(3, 5, 20000)
    draws = uniforms(3, 5, shuffled, 4)
    place = torch.linspace(0, 1, len(shuffled)).double()
    for draw in draws.T:
        assert torch.stack((place, draw)).corrcoef()[0, 1].abs() < 0.03


def test_draws_of_different_seeds_epochs_and_streams_are_unrelated():
    samples = torch.arange(2000)
    draws = torch.stack(
        [
            uniforms(seed, epoch, samples, 1, stream)[:, 0]
            for seed in (-1, 0, 1, 2)
            for epoch in (0, 1, 2)
            for stream in ("", "order", "step")
        ]
    )
    correlation = draws.corrcoef() - torch.eye(len(draws), dtype=torch.float64)
    assert correlation.abs().max() < 0.12
    assert not torch.equal(order(0, 1, 100), order(1, 0, 100))


def test_seeds_may_be_unsigned():
    for seed in (2**63, 2**64 - 1):
        assert torch.equal(order(seed, 0, 9), order(seed - 2**64, 0, 9))
