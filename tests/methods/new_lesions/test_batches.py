"""Batches of new_lesions: patches of both visits with their masks, and learning from them."""

import threading

import pytest
import torch

from cmrfast import FileError
from cmrfast.models import build
from cmrfast.models.new_lesions import Config, loss
from tests.support.new_lesions_cases import METHOD, SMALL, TASK, changed


def test_batches(task, cases):
    feed = task.feed(cases, seed=3)
    assert len(feed) == 3 * 8
    batch = feed.batch(0, torch.arange(6))
    assert set(batch) == {"earlier", "later", "masks"}
    for name in METHOD.inputs:
        assert batch[name].shape == (6, 1, 16, 16, 16)
        assert batch[name].dtype == torch.float32
        assert batch[name].isfinite().all()
    assert batch["masks"].shape == (6, 5, 16, 16, 16)
    assert batch["masks"].dtype == torch.uint8
    assert batch["masks"].unique().tolist() == [0, 1]
    assert loss(build("new_lesions").eval()(*(batch[n] for n in METHOD.inputs)), batch)


def test_inner_maps_can_learn_all_lesions_of_their_visit(task, cases, ljubljana):
    config = Config(aux_weight=0.5, aux_on="all")
    own = TASK(config, SMALL, task.fitted, cache=task.cache)
    batch = own.feed(cases, seed=3).batch(0, torch.arange(24))
    assert set(batch) == {"earlier", "later", "masks", "lesions"}
    earlier, later = batch["lesions"].unbind(1)
    assert (earlier & later).any()  # most stay
    new = batch["masks"][:, 0] > 0
    assert later[new].float().mean() > 0.95
    assert earlier[new].float().mean() < 0.2
    model = build("new_lesions", aux_weight=0.5, aux_on="all").eval()
    outputs = model(batch["earlier"], batch["later"])
    assert outputs["maps"].shape[1] == 2 * 3
    maps = [x[:, None].expand(-1, 3, -1, -1, -1) for x in (earlier, later)]
    perfect = {**outputs, "maps": 200.0 * torch.cat(maps, 1) - 100}
    assert loss(perfect, batch, config)["aux"] == pytest.approx(-1, abs=1e-4)
    swapped = {**outputs, "maps": perfect["maps"].flip(1)}
    assert loss(swapped, batch, config)["aux"] > -0.99
    with pytest.raises(ValueError, match="new_lesions: batch must hold lesions"):
        loss(perfect, {"masks": batch["masks"]}, config)
    with pytest.raises(FileError, match="earlier_lesions"):
        own.feed(ljubljana, seed=3)


def test_a_batch_is_a_function_of_its_samples(task, cases):
    feed = task.feed(cases, seed=3)
    samples = torch.randperm(len(feed))
    whole = feed.batch(2, samples)
    parts = [{}, {}]

    def make(which, numbers):
        parts[which] = task.feed(cases, seed=3).batch(2, numbers)

    threads = [threading.Thread(target=make, args=(n, s)) for n, s in enumerate(samples.chunk(2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, x in whole.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), x)
    other = feed.batch(3, samples)
    assert not torch.equal(other["later"], whole["later"])
    assert not torch.equal(task.feed(cases, seed=4).batch(2, samples)["later"], whole["later"])


def test_patches_hold_new_lesions_as_often_as_asked(task, cases):
    often = changed(task, per_patient=400, on_lesion=1.0)
    feed = often.feed(cases[:1], seed=0)
    masks = feed.batch(0, torch.arange(len(feed)))["masks"][:, 0]
    assert masks.flatten(1).any(1).all()
    never = changed(task, per_patient=50).feed(cases[2:], seed=0)
    assert not never.batch(0, torch.arange(50))["masks"][:, 0].any()


def test_flips_act_on_images_and_masks_alike(task, cases):
    straight = task.feed(cases, seed=1).batch(0, torch.arange(16))
    flipped = changed(task, flip=0.5).feed(cases, seed=1)
    batch = flipped.batch(0, torch.arange(16))
    ways = set()
    for n in range(16):
        found = [
            axes
            for axes in ((), (1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3))
            if all(torch.equal(x[n].flip(axes), batch[name][n]) for name, x in straight.items())
        ]
        assert len(found) == 1
        ways.add(found[0])
    assert len(ways) > 3


def test_some_steps_lower_the_loss(task, cases):
    torch.manual_seed(0)
    model = build("new_lesions", dropout=0.0).train()
    batch = task.feed(cases[:2], seed=0).batch(0, torch.arange(2))
    optimiser = torch.optim.Adam(model.parameters(), 4e-3)
    losses = []
    for _ in range(4):
        optimiser.zero_grad()
        value = loss(model(batch["earlier"], batch["later"]), batch)["loss"]
        value.backward()
        optimiser.step()
        losses.append(value.item())
    assert losses[-1] < losses[0]
