"""One step of every method, whole and in parts: over two processes, what one gives."""

from dataclasses import fields

import pytest
import torch

from cmrfast import methods
from cmrfast.train.micro_batch import Backward, Losses
from cmrfast.train.network import TrainingNetwork
from cmrfast.train.norm import sync_batch_norms
from cmrfast.train.ranks import Ranks
from cmrfast.train.update import Update
from tests.support.model_samples import SAMPLES, given, small
from tests.support.ranks import on_two_ranks

COUNTS = 4, 3, 1  # the first process gets 2, 2 and 1 of them
CASES = [
    (name, index, count)
    for name, sample in SAMPLES.items()
    for index in range(len(sample.variants))
    for count in COUNTS
]
PARTS = [(3, 1), (5, 2), (4, 1)]  # in the last of (3, 1), the second process has no sample


def updated(name, index, count, ranks) -> tuple[Losses, dict[str, torch.Tensor]]:
    """This process's losses, and the state of a network after a step on its part of a batch."""
    method = methods.get(name)
    without_dropout = {f.name: 0.0 for f in fields(method.config) if f.name.startswith("dropout")}
    model = small(name, **{**without_dropout, **SAMPLES[name].variants[index]})
    model = sync_batch_norms(model.train(), ranks)
    network = TrainingNetwork(model, model, method.inputs, ranks.device)
    inputs, batch = given(name, count)
    samples = ranks.own_part(torch.arange(count))
    own = {key: tensor[samples] for key, tensor in {**inputs, **batch}.items()}
    update = Update(method, model.config, method.recipe(), network, ranks, micro_batch=count)
    # Adam would blow rounding up where the gradient is zero: in biases before a batch norm.
    for optimiser in list(update.optimisers):
        weights = [p for g in update.optimisers[optimiser].param_groups for p in g["params"]]
        update.optimisers[optimiser] = torch.optim.SGD(weights)
    losses = update(own, lr=0.1, epoch=update.recipe.epochs - 1)
    return losses, dict(model.state_dict())


class Pixelwise(torch.nn.Conv2d):
    """A network without norms, which would be those of a part."""

    def forward(self, images):
        return {"scar": super().forward(images)}


def accumulated(count, size, ranks) -> tuple[float, torch.Tensor]:
    """The loss and gradient of a batch in parts of up to ``size`` of this process's samples."""
    method = methods.get("joint_scar")
    inputs, batch = given(method.name, count)
    torch.manual_seed(0)
    model = Pixelwise(1, 2, 3)
    backward = Backward(
        TrainingNetwork(model, model, method.inputs, ranks.device),
        lambda outputs, part: method.loss(outputs, part, group=ranks.group),
        ranks,
        torch.amp.GradScaler("cpu", enabled=False),
        mean_loss=True,
        size=size,
    )
    samples = ranks.own_part(torch.arange(count))
    scar = batch["scar"][:, 1:-1, 1:-1]
    losses = backward({"images": inputs["images"][samples], "scar": scar[samples]})
    ranks.average([model.weight.grad])
    return losses["loss"].item(), model.weight.grad


def on_rank(rank, group):
    ranks = Ranks(rank, 2, torch.device("cpu"), group)
    parts = {case: accumulated(*case, ranks) for case in PARTS}
    return parts | {case: updated(*case, ranks) for case in CASES}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"precision": "float16"}, "takes precision float32 or bfloat16; got float16"),
        ({"sharded": True}, "has a step of its own, which cannot be sharded"),
        ({"compiled": "default"}, "has a step of its own, which is not compiled"),
    ],
)
def test_what_a_step_of_its_own_cannot_do(how, message):
    method = methods.get("adversarial_transfer")
    model = small(method.name)
    network = TrainingNetwork(model, model, method.inputs, torch.device("cpu"), **how)
    with pytest.raises(ValueError, match=f"^train: adversarial_transfer {message}$"):
        Update(method, model.config, method.recipe(), network, Ranks())


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory):
    return on_two_ranks(on_rank, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(("name", "index", "count"), CASES)
def test_two_ranks_update_as_one(name, index, count, of_two_ranks):
    losses, weights = updated(name, index, count, Ranks())
    first, second = (of_rank[name, index, count] for of_rank in of_two_ranks)
    for part, loss in losses.items():
        of_ranks = torch.stack((first[0][part], second[0][part]))
        assert of_ranks.isfinite().all(), part
        torch.testing.assert_close(of_ranks.mean(), loss, rtol=1e-4, atol=1e-5, msg=part)
    for key, tensor in weights.items():
        assert torch.equal(first[1][key], second[1][key]), key
        torch.testing.assert_close(first[1][key], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("count", "size"), PARTS)
def test_two_ranks_accumulate_as_one(count, size, of_two_ranks):
    loss, gradient = accumulated(count, count, Ranks())
    for of_rank in of_two_ranks:
        assert of_rank[count, size][0] == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(of_rank[count, size][1], gradient, rtol=1e-4, atol=1e-6)
