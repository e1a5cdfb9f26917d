"""Batch norm by the batch of all ranks."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cmrfast.ops._collectives import total
from cmrfast.train.ranks import Ranks


def sync_batch_norms(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Let a network's batch norms see, in training, the batch of all ranks.

    All ranks then have to call the network equally often.

    Args:
        model: changed in place if possible.
        ranks: of the default group.
    """
    if ranks.count == 1:
        return model
    if ranks.device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted
    for module in model.modules():  # torch has none for CPUs
        module.__class__ = _SHARED.get(type(module), type(module))
    return model


@contextmanager
def norms_alone(model: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Let one rank call a network that trains on several, by the norms' running statistics.

    Args:
        model: of ``sync_batch_norms``.
        ranks: that train together; of one alone nothing changes.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    if ranks.count == 1:
        norms = []
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


class _Shared(_BatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            plain: Tensor = super().forward(x)
            return plain
        axes = [axis for axis in range(x.dim()) if axis != 1]
        wide = [1, -1] + [1] * (x.dim() - 2)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        here = values.new_tensor([x.numel() / x.shape[1]])
        # The counts are summed too: parts of a batch may differ by one sample.
        sums = total(torch.cat((values.sum(axes), here)), None)
        n = sums[-1].detach()
        mean = sums[:-1] / n
        centred = values - mean.view(wide)
        variance = total(centred.square().sum(axes), None) / n
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach() * n / (n - 1))
        scale = (variance + self.eps).rsqrt() * self.weight
        normed: Tensor = centred * scale.view(wide) + self.bias.view(wide)
        return normed.to(x.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


class _Shared2d(_Shared, nn.BatchNorm2d):
    pass


class _Shared3d(_Shared, nn.BatchNorm3d):
    pass


_SHARED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: _Shared2d,
    nn.BatchNorm3d: _Shared3d,
}
