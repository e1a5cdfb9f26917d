"""The brain of two visits, without its bias field."""

import pytest
import torch

from cmrfast.data.prepare import brain_union, correct_bias, foreground


def test_n4_evens_a_shaded_phantom():
    pytest.importorskip("SimpleITK")
    at = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in (40, 36, 20)), indexing="ij")
    radius = sum(a.square() for a in at)
    tissue = torch.where(radius < 0.3, 100.0, 60.0) + torch.randn(radius.shape)
    shaded = tissue * torch.exp(0.4 * at[0] - 0.3 * at[1] * at[2])
    mask = radius < 0.9
    even = correct_bias(shaded, mask, (1.0, 1.0, 2.0), shrink=2, iterations=(20, 20))
    assert even[mask].mean().item() == pytest.approx(shaded[mask].mean().item(), rel=1e-4)
    white = radius < 0.3
    assert even[white].std() / even[white].mean() < 0.5 * shaded[white].std() / shaded[white].mean()


def test_brain_union():
    a, b = torch.tensor([[0, 2], [0, 0]]), torch.tensor([[False, False], [True, False]])
    assert brain_union(a, b).tolist() == [[False, True], [True, False]]


def test_a_missing_simpleitk_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
    with pytest.raises(ImportError, match=r"pip install cmrfast\[n4\]"):
        correct_bias(torch.ones(4, 4, 4), torch.ones(4, 4, 4), (1, 1, 1))


def test_foreground_is_the_head_without_holes():
    volume = torch.rand(30, 30, 30) * 3
    at = torch.stack(torch.meshgrid(*[torch.arange(30.0)] * 3, indexing="ij")) - 15
    radius = at.norm(dim=0)
    volume[radius < 10] = 400
    volume[radius < 4] = 0  # fluid
    found = foreground(volume)
    assert found[radius < 9].all()
    assert not found[radius > 12.5].any()
    assert not foreground(torch.zeros(4, 4, 4)).any()
    with pytest.raises(ValueError, match=r"^foreground: volume must be \(I, J, K\); got \(4, 4\)"):
        foreground(torch.zeros(4, 4))


SLICE, VOLUME = torch.zeros(4, 4), torch.zeros(1, 4, 4, 4)
FEW = torch.zeros(8, 8)
FEW[0, :3] = 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: brain_union(SLICE, FEW), ValueError, r"one shape; got \(4, 4\), \(8, 8\)"),
        (lambda: correct_bias(SLICE, SLICE, (1, 1)), ValueError, r"volume \(I, J, K\)"),
        (
            lambda: correct_bias(VOLUME[0], VOLUME[0], (1, 1, 1)),
            ValueError,
            "the mask is empty",
        ),
    ],
)
def test_messages(call, error, message):
    with pytest.raises(error, match=message):
        call()
