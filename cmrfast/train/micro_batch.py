"""Gradients of a batch that goes through the network in parts, as those of the whole batch."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cmrfast.methods import Batch
from cmrfast.train.network import TrainingNetwork
from cmrfast.train.ranks import Ranks

Losses = dict[str, Tensor]


class Backward:
    """Forward, loss and backward of one batch, in as many parts as memory asks for.

    The result is that of the whole batch, except that batch norm normalises by part and dropout
    draws other masks. Losses that are means over samples are added up. For the others, in which
    every sample depends on all, a first pass without gradients gives the outputs of the whole
    batch, their loss gives the gradient of each output, and a second pass carries these into the
    network.

    Args:
        network: to differentiate.
        loss: losses of a batch by name, from the network's outputs and the batch.
        ranks: which split a batch into equally many parts.
        scaler: scales the loss in float16.
        mean_loss: whether the loss is a mean over samples.
        size: samples of this rank that go through the network at a time; None takes all.
    """

    def __init__(
        self,
        network: TrainingNetwork,
        loss: Callable[[Mapping[str, Tensor], Batch], Losses],
        ranks: Ranks,
        scaler: torch.amp.GradScaler,
        *,
        mean_loss: bool,
        size: int | None = None,
    ) -> None:
        self.network, self.loss, self.ranks, self.scaler = network, loss, ranks, scaler
        self.mean_loss, self.size = mean_loss, size

    def __call__(self, batch: Batch) -> Losses:
        """Add the batch's gradients to the parameters'; returns its losses, detached."""
        count = len(next(iter(batch.values())))
        # As many as the first rank's, whose part is the largest: batch norms meet in every part.
        parts = self.ranks.broadcast(-(-count // (self.size or count)))
        if parts == 1:
            losses = self.loss(self.network(batch), batch)
            self.scaler.scale(losses["loss"]).backward()
            return {name: loss.detach() for name, loss in losses.items()}
        pieces = [
            dict(zip(batch, tensors, strict=True))
            for tensors in zip(
                *(tensor.tensor_split(parts) for tensor in batch.values()), strict=True
            )
        ]
        if self.mean_loss:
            return self._accumulate(pieces)
        return self._recompute(pieces, batch)

    def _accumulate(self, pieces: list[Batch]) -> Losses:
        totals: Losses = {}
        # A loss is the mean over a part of all ranks. Theirs may be a sample more or less than this
        # rank's, which may have none, yet meets them in norms and losses.
        sizes = self.ranks.gather([len(next(iter(piece.values()))) for piece in pieces])
        samples = [sum(of_ranks) for of_ranks in zip(*sizes, strict=True)]
        for piece, of_piece in zip(pieces, samples, strict=True):
            weight = of_piece / sum(samples)
            losses = self.loss(self.network(piece), piece)
            self.scaler.scale(losses["loss"] * weight).backward()
            for name, loss in losses.items():
                totals[name] = totals.get(name, 0) + weight * loss.detach()
        return totals

    def _recompute(self, pieces: list[Batch], batch: Batch) -> Losses:
        device, model = self.network.device, self.network.model
        states, computed = [], []
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        with torch.no_grad():
            for piece in pieces:
                states.append(_random_state(device))
                outputs = self.network(piece)
                if self.network.compiled == "graphs":  # the next call overwrites them
                    outputs = {name: output.clone() for name, output in outputs.items()}
                computed.append(outputs)
            for name, buffer in model.named_buffers():  # running statistics count once
                buffer.copy_(buffers[name])
        outputs = {
            name: torch.cat([part[name] for part in computed]).requires_grad_()
            for name in computed[0]
        }
        losses = self.loss(outputs, batch)
        self.scaler.scale(losses["loss"]).backward()
        grads = {name: out.grad for name, out in outputs.items() if out.grad is not None}
        start = 0
        for piece, state in zip(pieces, states, strict=True):
            _set_random_state(device, state)  # dropout as in the first pass
            again = self.network(piece)
            stop = start + len(next(iter(again.values())))
            torch.autograd.backward(
                [again[name] for name in grads], [grad[start:stop] for grad in grads.values()]
            )
            start = stop
        return {name: loss.detach() for name, loss in losses.items()}


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
