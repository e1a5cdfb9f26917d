"""siamese_lesion: published counts, losses in closed form, and what LGE may not change."""

import math

import pytest
import torch

from cmrfast.models import build
from cmrfast.models.siamese_lesion import Config, ResponseNorm, loss

CLASSIFIER = 10_402


def count(**changes):
    with torch.device("meta"):
        return sum(p.numel() for p in build("siamese_lesion", **changes).parameters())


def small(**changes):
    return build("siamese_lesion", patch=32, channels=(8, 8, 8, 8), hidden=32, **changes)


@pytest.mark.parametrize(
    ("changes", "branches"),
    [
        ({"variant": "siamese"}, 9_082_304),
        ({"variant": "pure"}, 9_082_304),
        ({"variant": "partial"}, 10_593_792),
        ({"variant": "partial", "shared_layers": (1, 2, 3)}, 16_653_120),
        ({"variant": "decoupled"}, 18_164_608),
        ({}, 18_164_608),
        ({"variant": "siamese", "patch": 32}, 2_790_848),
        ({"variant": "siamese", "patch": 48}, 4_888_000),
        ({"variant": "siamese", "patch": 96}, 23_762_368),
    ],
)
def test_parameter_counts(changes, branches):
    assert count(**changes) == branches + CLASSIFIER


def test_layers_of_one_branch():
    with torch.device("meta"):
        branch = build("siamese_lesion").t1
    found = [sum(p.numel() for p in layer.parameters()) for layer in branch.values()]
    assert found == [11_712, 614_656, 885_120, 884_992, 6_554_624, 131_200]


def test_response_norm_is_torchs():
    torch.manual_seed(0)
    for channels in (1, 2, 3, 5, 12):
        x = (20 * torch.randn(2, channels, 4, 5, dtype=torch.float64)).requires_grad_()
        reference = torch.nn.LocalResponseNorm(5, 1e-4, 0.75, 2)(x)
        torch.testing.assert_close(ResponseNorm()(x), reference)
        weight = torch.randn_like(x)
        (wanted,) = torch.autograd.grad((reference * weight).sum(), x)
        (found,) = torch.autograd.grad((ResponseNorm()(x) * weight).sum(), x)
        torch.testing.assert_close(found, wanted)


def test_response_norm_gradient():
    x = (50 * torch.randn(1, 7, 2, 2, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(ResponseNorm(), x)


def test_initial_weights_are_glorot_and_biases_zero():
    model = build("siamese_lesion")
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert not p.any()
    weight = model.t1["conv2"][0].weight
    bound = math.sqrt(6 / (25 * (96 + 256)))
    assert bound * 0.999 < weight.abs().max() <= bound


@pytest.mark.parametrize("variant", ["decoupled", "siamese", "partial"])
@pytest.mark.parametrize("training", [False, True])
def test_lge_changes_no_bit_of_t1(variant, training):
    model = small(variant=variant).train(training)
    t1, lge = torch.randn(2, 4, 1, 32, 32)
    torch.manual_seed(3)
    alone = model(t1)
    torch.manual_seed(3)
    both = model(t1, lge)
    assert set(both) - set(alone) == {"lge"}
    for name, value in alone.items():
        assert torch.equal(value, both[name])


def test_shared_weights_give_equal_features_of_equal_images():
    image = torch.randn(4, 1, 32, 32)
    outputs = small(variant="siamese").eval()(image, image)
    assert torch.equal(outputs["t1"], outputs["lge"])
    outputs = small(variant="decoupled").eval()(image, image)
    assert not torch.allclose(outputs["t1"], outputs["lge"])


def test_partial_shares_the_layers_it_names():
    for shared in ((4, 5, 6), (1, 2, 3), ()):
        model = small(variant="partial", shared_layers=shared)
        own = [int(name[-1]) for name in model.lge]
        assert sorted((*own, *shared)) == [1, 2, 3, 4, 5, 6]


def test_pure_never_looks_at_lge():
    outputs = small(variant="pure").eval()(*torch.randn(2, 4, 1, 32, 32))
    assert set(outputs) == {"logits", "t1"}
    assert set(loss(outputs, {"labels": torch.zeros(4).long()})) == {"loss", "classification"}


def parts(t1, lge, logits=None):
    n = len(t1)
    logits = torch.zeros(n, 2) if logits is None else logits
    return loss({"logits": logits, "t1": t1, "lge": lge}, {"labels": torch.arange(n) % 2})


def test_loss_anchors():
    alike = torch.ones(32, 128)
    assert parts(alike, alike)["pairing"].item() == pytest.approx(math.log(32), abs=1e-5)
    unit = torch.eye(32, 128)
    matched = math.log1p(31 * math.exp(-1 / 0.07))
    assert matched == pytest.approx(1.937094e-5, abs=1e-10)
    assert parts(unit, unit)["pairing"].item() == pytest.approx(matched, abs=2e-7)
    assert parts(unit, unit.roll(1, 0))["pairing"].item() == pytest.approx(14.285734, abs=1e-5)
    found = parts(unit, unit)
    assert found["classification"].item() == pytest.approx(math.log(2), abs=1e-6)
    assert found["loss"].item() == pytest.approx(math.log(2) + matched, abs=1e-6)


def test_pairing_goes_from_t1_to_lge():
    t1 = torch.eye(4, 8)
    lge = t1.clone()
    lge[1] = lge[0]  # T1 patch 0 finds two alike, T1 patch 1 finds none
    forth = (math.log(2) + math.log(4)) / 4
    back = math.log1p(math.exp(1 / 0.07)) / 4  # LGE patch 1 finds T1 patch 0
    assert parts(t1, lge)["pairing"].item() == pytest.approx(forth, abs=1e-5)
    assert parts(lge, t1)["pairing"].item() == pytest.approx(back, abs=1e-5)


def test_gradients_reach_where_they_should():
    model = small()
    t1, lge = torch.randn(2, 4, 1, 32, 32)
    batch = {"labels": torch.tensor([0, 1, 0, 1])}
    found = loss(model(t1, lge), batch)
    (grad,) = torch.autograd.grad(
        found["classification"], model.t1["conv1"][0].weight, retain_graph=True
    )
    assert grad.norm() > 0
    found["pairing"].backward()
    assert model.t1["conv1"][0].weight.grad.norm() > 0
    assert model.lge["conv1"][0].weight.grad.norm() > 0
    assert all(p.grad is None for p in model.classifier.parameters())


def test_messages():
    for changes, match in (
        ({"variant": "twin"}, r"variant must be one of decoupled, .*; got 'twin'"),
        ({"norm": "layer"}, r"norm must be one of lrn, batch; got 'layer'"),
        ({"temperature": 0.0}, r"temperature must be positive; got 0.0"),
        ({"patch": 31}, r"patch must be at least 32; got 31"),
        ({"shared_layers": (0, 4)}, r"shared_layers must be some of 1 to 6; got \(0, 4\)"),
    ):
        with pytest.raises(ValueError, match=f"siamese_lesion: {match}"):
            Config(**changes)
    model = small().eval()
    with pytest.raises(ValueError, match=r"t1 must be \(B, 1, 32, 32\); got \(2, 1, 64, 64\)"):
        model(torch.zeros(2, 1, 64, 64))
    with pytest.raises(ValueError, match=r"t1 and lge must have one shape; got \(2, .* and \(3,"):
        model(torch.zeros(2, 1, 32, 32), torch.zeros(3, 1, 32, 32))
    outputs = model(torch.zeros(2, 1, 32, 32))
    for labels, error, match in (
        (torch.tensor([0, 2]), ValueError, r"labels must be 0 to 1; got values from 0 to 2"),
        (torch.zeros(3).long(), ValueError, r"labels must be \(2,\); got \(3,\)"),
        (torch.zeros(2), TypeError, r"labels must be integers; got torch.float32"),
    ):
        with pytest.raises(error, match=f"siamese_lesion: {match}"):
            loss(outputs, {"labels": labels})
