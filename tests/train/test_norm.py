"""Batch norm over ranks: what one process gives for the whole batch, forward and backward."""

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from cmrfast.train.norm import share_norms
from cmrfast.train.ranks import Ranks

SIZES = {3: (4, 1, 0), 2: (3, 2)}


def network(norm):
    torch.manual_seed(0)
    conv = {nn.BatchNorm2d: nn.Conv2d, nn.BatchNorm3d: nn.Conv3d}[norm]
    return nn.Sequential(
        conv(2, 3, 3), norm(3), nn.ReLU(), conv(3, 2, 1), norm(2, eps=1e-3)
    ).double()


def images(norm):
    draw = torch.Generator().manual_seed(1)
    shape = (5, 2, 5, 6, 5) if norm is nn.BatchNorm3d else (5, 2, 6, 5)
    return torch.randn(*shape, generator=draw, dtype=torch.float64) * 3 + 1


def learned(model, batch):
    """What a step leaves behind: the sum of a loss over samples, its gradients, the statistics."""
    loss = model(batch).sigmoid().square().sum()
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters()), *model.buffers()]


def on_rank(rank, count, folder, norm):
    store = dist.FileStore(str(folder / "store"), count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
    model = share_norms(network(norm), Ranks(rank, count, group=dist.group.WORLD)).train()
    assert isinstance(model[1], norm)
    found = learned(model, images(norm).split(SIZES[count])[rank])
    sums = len(found) - len(list(model.buffers()))
    for tensor in found[:sums]:
        dist.all_reduce(tensor)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.BatchNorm3d])
@pytest.mark.parametrize("count", SIZES)
def test_ranks_normalise_as_one(tmp_path, count, norm):
    expected = learned(network(norm).train(), images(norm))
    multiprocessing.spawn(on_rank, (count, tmp_path, norm), count)
    for rank in range(count):
        found = torch.load(tmp_path / f"{rank}.pt")
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_alone_and_in_evaluation_nothing_changes():
    model = network(nn.BatchNorm2d)
    assert share_norms(model, Ranks()) is model
    assert type(model[1]) is nn.BatchNorm2d
    x = images(nn.BatchNorm2d)
    expected = model.eval()(x)
    shared = share_norms(model, Ranks(0, 2))
    assert torch.equal(shared(x), expected)
    assert shared.state_dict().keys() == network(nn.BatchNorm2d).state_dict().keys()
