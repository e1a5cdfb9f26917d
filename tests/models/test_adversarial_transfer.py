"""adversarial_transfer: counts, losses in closed form, and who learns in which half-step."""

import copy
import math

import pytest
import torch
from torch import nn

from cmrfast.models import build
from cmrfast.models.adversarial_transfer import (
    Config,
    Recipe,
    Residual,
    adversarial_loss,
    discriminator_losses,
    loss,
    step,
)


def count(module):
    return sum(p.numel() for p in module.parameters())


def published(**changes):
    with torch.device("meta"):
        return build("adversarial_transfer", **changes)


def small(**changes):
    torch.manual_seed(0)
    small_fields = {"width": 8, "size": 32, "disc_widths": (4, 6, 8)}
    return build("adversarial_transfer", **small_fields | changes).train()


def given(count=4, pseudo=3):
    torch.manual_seed(1)
    return {
        "images": torch.randn(count, 1, 32, 32),
        "labels": torch.randint(0, 4, (count, 32, 32)),
        "pseudo_images": torch.randn(pseudo, 1, 32, 32),
        "pseudo_labels": torch.randint(0, 4, (pseudo, 32, 32)),
    }


def optimisers(model, kind=torch.optim.Adam):
    return {name: kind(part.parameters(), 1e-2) for name, part in model.named_children()}


class Watched(torch.optim.SGD):
    """Notes at each of its updates which part of the whole model has changed since the last."""

    def __init__(self, name, parameters, model, log):
        super().__init__(parameters, 1e-2)
        self.name, self.model, self.log = name, model, log

    def step(self, closure=None):
        before = {k: v.clone() for k, v in self.model.state_dict().items()}
        super().step(closure)
        after = self.model.state_dict()
        changed = {k for k, v in before.items() if not torch.equal(v, after[k])}
        self.log.append((self.name, {k.split(".")[0] for k in changed}))


def test_parameter_counts():
    model = published()
    assert count(model.generator) == 155_652
    assert sum(isinstance(m, nn.Conv2d) for m in model.generator.modules()) == 20
    assert count(model.discriminator) == 296_577
    assert count(published(size=256).discriminator) == 304_257
    assert count(published(variant="u")) == 155_652
    first = {"first": 9_568, "down2": 19_552, "up3": 29_792, "last": 27_712, "head": 132}
    for name, wanted in first.items():
        assert count(getattr(model.generator, name)) == wanted


def test_initial_weights_are_glorot_and_biases_zero():
    model = build("adversarial_transfer")
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan = layer.weight[0].numel() + layer.weight.shape[0] * layer.weight[0, 0].numel()
            assert layer.weight.abs().max() <= math.sqrt(6 / fan)
            assert not layer.bias.any()


def test_residual_block_sums_two_rectified_paths():
    block = Residual(2, 3, 2)
    x = torch.randn(1, 2, 12, 12)
    main = block.second(block.first(x).relu()).relu()
    torch.testing.assert_close(block(x), main + block.skip(x).relu())
    assert block.first.dilation == block.second.dilation == (2, 2)


@pytest.mark.parametrize("dilation", [1, 2, 4, 8])
def test_coarse_images_join_as_if_repeated(dilation):
    block = Residual(5, 4, dilation).double()
    x = torch.randn(2, 3, 16, 24, dtype=torch.float64, requires_grad=True)
    coarse = torch.randn(2, 2, 8, 12, dtype=torch.float64, requires_grad=True)
    repeated = coarse.repeat_interleave(2, -1).repeat_interleave(2, -2)
    plain = Residual.forward(block, torch.cat((repeated, x), 1))
    torch.testing.assert_close(block(x, coarse), plain)
    wanted = (x, coarse, *block.parameters())
    weight = torch.randn_like(plain)
    ours = torch.autograd.grad((block(x, coarse) * weight).sum(), wanted)
    torch.testing.assert_close(ours, torch.autograd.grad((plain * weight).sum(), wanted))


def test_segmentation_anchors():
    labels = torch.randint(0, 4, (2, 224, 224))
    found = loss({"logits": torch.zeros(2, 4, 224, 224)}, {"labels": labels})
    assert found["loss"].item() == pytest.approx(1.322665, abs=1e-5)
    perfect = 200 * nn.functional.one_hot(labels, 4).movedim(-1, 1).float()
    assert loss({"logits": perfect}, {"labels": labels})["loss"].item() == pytest.approx(
        0, abs=1e-6
    )


def test_transfer_counts_a_tenth():
    batch = given()
    outputs = {"logits": torch.randn(4, 4, 32, 32), "pseudo_logits": torch.randn(3, 4, 32, 32)}
    found = loss(outputs, batch)
    torch.testing.assert_close(found["loss"], 0.9 * found["individual"] + 0.1 * found["transfer"])
    alone = loss({"logits": outputs["logits"]}, batch)
    torch.testing.assert_close(alone["loss"], found["individual"])


def test_adversarial_anchors():
    unsure = torch.zeros(5)  # D = 1/2
    assert sum(discriminator_losses(unsure, unsure)).item() == pytest.approx(2 * math.log(2))
    assert adversarial_loss(unsure).item() == pytest.approx(math.log(2))
    assert adversarial_loss(unsure, "minmax").item() == pytest.approx(-math.log(2))
    logits = torch.randn(50, dtype=torch.float64)
    bce = nn.functional.binary_cross_entropy
    true, false = torch.ones_like(logits), torch.zeros_like(logits)
    torch.testing.assert_close(discriminator_losses(logits, logits)[0], bce(logits.sigmoid(), true))
    torch.testing.assert_close(
        discriminator_losses(logits, logits)[1], bce(logits.sigmoid(), false)
    )
    torch.testing.assert_close(adversarial_loss(logits), bce(logits.sigmoid(), true))
    torch.testing.assert_close(adversarial_loss(logits, "minmax"), -bce(logits.sigmoid(), false))
    sure = torch.tensor([1e4, -1e4])
    assert all(x.isfinite() for x in (*discriminator_losses(sure, sure), adversarial_loss(sure)))


@pytest.mark.parametrize("gan", ["nonsaturating", "minmax"])
def test_adversarial_loss_raises_the_score(gan):
    logits = torch.randn(5, requires_grad=True)
    adversarial_loss(logits, gan).backward()
    assert (logits.grad < 0).all()


@pytest.mark.parametrize("disc", ["plain", "residual"])
@pytest.mark.parametrize("g_steps", [1, 2])
def test_one_network_changes_in_each_half_step(disc, g_steps):
    model, log = small(disc=disc, g_steps=g_steps), []
    watched = {
        name: Watched(name, getattr(model, name).parameters(), model, log)
        for name in ("generator", "discriminator")
    }
    step(model, given(), watched)
    names = ["discriminator"] * 2 + ["generator"] * g_steps
    assert log == [(name, {name}) for name in names]


def test_generator_step_leaves_the_discriminator_as_it_is():
    model = small()
    watched = optimisers(model)
    seen = []

    def note(*_):
        seen.append(copy.deepcopy(model.discriminator.state_dict()))

    watched["discriminator"].register_step_post_hook(note)
    step(model, given(), watched)
    after = model.discriminator.state_dict()
    assert int(after["levels.1.2.num_batches_tracked"]) == 2  # true masks, predictions
    for name, value in seen[-1].items():
        assert torch.equal(value, after[name])
    assert all(p.requires_grad for p in model.parameters())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(m.track_running_stats and m.training for m in norms)


def test_frozen_discriminator_is_restored_after_an_error():
    model = small()
    model.discriminator.head.bias.requires_grad_(False)

    def fail(*_):
        raise KeyboardInterrupt

    model.discriminator.head.register_forward_hook(
        lambda module, *_: None if module.weight.requires_grad else fail()
    )
    with pytest.raises(KeyboardInterrupt):
        step(model, given(), optimisers(model))
    frozen = [name for name, p in model.discriminator.named_parameters() if not p.requires_grad]
    assert frozen == ["head.bias"]
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_step_is_algorithm_1_written_out():
    model = small(g_steps=2)
    twin, batch = copy.deepcopy(model), given()
    # Adam would blow rounding up where the gradient is zero: in biases before a batch norm.
    found = step(model, batch, optimisers(model, torch.optim.SGD))

    ours = optimisers(twin, torch.optim.SGD)
    images = torch.cat((batch["images"], batch["pseudo_images"]))
    labels = torch.cat((batch["labels"], batch["pseudo_labels"]))
    bce = nn.functional.binary_cross_entropy_with_logits
    true = nn.functional.one_hot(labels, 4).movedim(-1, 1).float()
    with torch.no_grad():
        generated = twin.generator(images).softmax(1)
    told = 0.0
    for masks, target in ((true, 1.0), (generated, 0.0)):
        ours["discriminator"].zero_grad()
        scores = twin.discriminator(masks, images)
        objective = bce(scores, torch.full_like(scores, target))
        told += objective.item()
        convs = [m for m in twin.discriminator.modules() if isinstance(m, nn.Conv2d)]
        for conv in convs:
            objective = objective + 0.01 * (conv.weight**2).sum()
        objective.backward()
        ours["discriminator"].step()
    statistics = copy.deepcopy(dict(twin.discriminator.named_buffers()))
    for _ in range(2):
        ours["generator"].zero_grad()
        outputs = twin(batch["images"], batch["pseudo_images"])
        logits = torch.cat((outputs["logits"], outputs["pseudo_logits"]))
        scores = twin.discriminator(logits.softmax(1), images)
        total = loss(outputs, batch)["loss"] + bce(scores, torch.ones_like(scores))
        total.backward()
        ours["generator"].step()
    for name, value in statistics.items():
        twin.discriminator.get_buffer(name).copy_(value)

    assert found["discriminator"].item() == pytest.approx(told, rel=1e-5)
    assert found["loss"].item() == pytest.approx(total.item(), rel=1e-4)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("changes", [{"variant": "u"}, {}], ids=["u", "first phase"])
def test_generator_alone(changes):
    model = small(**changes)
    before = copy.deepcopy(model.state_dict())
    found = step(model, given(), optimisers(model), adversarial=False)
    assert set(found) == {"loss", "individual"}
    assert not any(x.requires_grad for x in found.values())
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert {k.split(".")[0] for k in changed} == {"generator"}


def test_without_transfer_pseudo_images_are_not_used():
    batch = given()
    first, second = small(variant="u_a"), small(variant="u_a")
    step(first, batch, optimisers(first))
    del batch["pseudo_images"], batch["pseudo_labels"]
    found = step(second, batch, optimisers(second))
    assert set(found) == {"loss", "individual", "adversarial", "discriminator"}
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


def test_both_networks_improve():
    model, batch = small(), given()
    made = optimisers(model)
    alone = [step(model, batch, made, adversarial=False)["loss"] for _ in range(5)]
    assert alone[-1] < alone[0]
    told = [step(model, batch, made)["discriminator"] for _ in range(5)]
    assert told[-1] < told[0]


def test_messages():
    for changes, match in (
        ({"variant": "t"}, r"variant must be one of u_a_t, u_a, u; got 't'"),
        ({"gan": "wasserstein"}, r"gan must be one of nonsaturating, minmax; got 'wasserstein'"),
        ({"disc": "deep"}, r"disc must be one of plain, residual; got 'deep'"),
        ({"dilations": (2, 3, 4)}, r"dilations must be even; got \(2, 3, 4\)"),
        ({"individual_weight": 5.0}, r"individual_weight must lie in \[0, 1\]; got 5.0"),
        ({"g_steps": 0}, r"g_steps must be at least 1; got 0"),
        ({"size": 100}, r"size must be a multiple of 16; got 100"),
    ):
        with pytest.raises(ValueError, match=f"adversarial_transfer: {match}"):
            Config(**changes)
    model, batch = small(), given()
    with pytest.raises(ValueError, match=r"images must be \(B, 1, 32, 32\); got \(1, 1, 40, 40\)"):
        model.discriminator(torch.zeros(1, 4, 40, 40), torch.zeros(1, 1, 40, 40))
    with pytest.raises(ValueError, match=r"masks must be \(1, 4, 32, 32\); got \(1, 3, 32, 32\)"):
        model.discriminator(torch.zeros(1, 3, 32, 32), torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match=r"batch must hold pseudo_images, pseudo_labels; got"):
        step(model, {k: batch[k] for k in ("images", "labels")}, optimisers(model))
    with pytest.raises(ValueError, match=r"labels must be 0 to 3; got values from 0 to 4"):
        step(model, batch | {"labels": torch.arange(4).view(4, 1, 1) + given()["labels"] % 2}, {})


def test_the_generator_may_learn_by_rmsprop_with_clipped_gradients():
    weight = torch.nn.Parameter(torch.zeros(2))
    network = torch.nn.ParameterList([weight])
    recipe = Recipe(optimizer_g="rmsprop", lr=0.1)
    made_for = {"generator": network, "discriminator": network}
    made = recipe.optimisers(made_for)
    optimiser = made["combined"]
    weight.grad = torch.tensor([50.0, -0.5])
    optimiser.step()
    assert torch.equal(weight.grad, torch.tensor([1.0, -0.5]))
    # A step of lr · g / sqrt(0.1 · g²), whatever the gradient's size.
    torch.testing.assert_close(weight.detach(), torch.tensor([-1.0, 1.0]) * 0.1 / 0.1**0.5)
    for alone in (made["generator"], made["discriminator"]):
        assert isinstance(alone, torch.optim.Adam)
    assert set(recipe.optimisers({"generator": network})) == {"generator"}  # variant u
    assert set(Recipe().optimisers(made_for)) == set(made_for)
    with pytest.raises(ValueError, match="optimizer_g must be one of adam, rmsprop; got 'sgd'"):
        Recipe(optimizer_g="sgd")


def test_rmsprop_follows_adam_in_the_adversarial_phase():
    one, other = small(g_steps=2), small(g_steps=2)
    networks = dict(one.named_children())
    by_code, adam = (Recipe(optimizer_g=g) for g in ("rmsprop", "adam"))
    ours, theirs = by_code.optimisers(networks), adam.optimisers(dict(other.named_children()))
    for _ in range(2):
        step(one, given(), ours, adversarial=False)
        step(other, given(), theirs, adversarial=False)
    assert not ours["combined"].state
    for name, value in one.state_dict().items():  # as with Adam throughout, to the bit
        assert torch.equal(value, other.state_dict()[name])
    before = copy.deepcopy(ours["generator"].state_dict())
    step(one, given(), ours)
    torch.testing.assert_close(ours["generator"].state_dict(), before, rtol=0, atol=0)
    assert {state["step"].item() for state in ours["combined"].state.values()} == {2}
