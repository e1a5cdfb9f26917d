"""One optimiser step: forward, loss, backward, in parts where memory asks for it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cmrfast.models import method
from cmrfast.tasks import Batch, Task
from cmrfast.train.ranks import Ranks
from cmrfast.train.shard import load_whole_state, whole_state

_HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Update:
    """Applies a method's loss, or its own ``step``, to one batch.

    With ``micro_batch`` below the batch the network sees parts of it, and the result is that of
    the whole batch all the same (but for batch norm, which normalises each part): losses that are
    means over samples are added up; for the others, whose every sample depends on all, a first
    pass without gradients gives the outputs of the whole batch, their loss gives each output's
    gradient, and a second pass carries these into the network.

    Args:
        task: of the method.
        model: in training mode, on the ranks' device.
        ranks: gradients are averaged over them, losses are those of the batch of all.
        micro_batch: samples of this rank that go through the network at once.
        precision: float32, bfloat16 or float16.
        forward: stands in for the model's forward, such as a compiled one.
        sharded: the model's weights were dealt out by ``shard``.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        ranks: Ranks,
        *,
        micro_batch: int,
        precision: str = "float32",
        forward: Callable[..., Mapping[str, Tensor]] | None = None,
        sharded: bool = False,
    ) -> None:
        self.task, self.model, self.ranks, self.micro_batch = task, model, ranks, micro_batch
        self.sharded = sharded
        self.half = _HALF.get(precision)
        self.forward = forward or model
        self.module: Any = method(task.name)
        self.own_step = hasattr(self.module, "step")
        if self.own_step and precision == "float16":
            raise ValueError(f"train: {task.name} takes precision float32 or bfloat16; got float16")
        if self.own_step and sharded:
            raise ValueError(f"train: {task.name} has a step of its own, which cannot be sharded")
        # A method with a step of its own has an optimiser for each of its networks.
        parts = dict(model.named_children()) if self.own_step else {"model": model}
        recipe = task.recipe
        self.optimisers: dict[str, torch.optim.Optimizer] = {
            name: recipe.optimiser(name, part.parameters()) for name, part in parts.items()
        }
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=precision == "float16")

    def __call__(self, batch: Batch, *, lr: float, epoch: int) -> dict[str, Tensor]:
        """Update the network; the losses before, of this rank, detached.

        Args:
            batch: of this rank, on its device.
            lr: of this step.
            epoch: from 0.
        """
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = lr
        if self.own_step:
            with self._autocast():
                losses: dict[str, Tensor] = self.module.step(
                    self.model,
                    batch,
                    self.optimisers,
                    average=self.ranks.average,
                    group=self.ranks.group,
                    **self.task.step(epoch),
                )
            return losses
        optimiser = self.optimisers["model"]
        optimiser.zero_grad(set_to_none=True)
        parts = self._backward(batch)
        if not bool(parts["loss"].isfinite()):
            return parts  # an update would only spread it
        if not self.sharded:
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            self.ranks.average(gradients)
        self.scaler.step(optimiser)
        self.scaler.update()
        return parts

    def state(self) -> dict[str, Any]:
        """Of the network, the optimisers and the scaler; all ranks have to call it."""
        if self.sharded:
            weights, optimiser = whole_state(self.model, self.optimisers["model"])
            optimisers = {"model": optimiser}
        else:
            weights = dict(self.model.state_dict())
            optimisers = {name: o.state_dict() for name, o in self.optimisers.items()}
        return {"model": weights, "optimisers": optimisers, "scaler": self.scaler.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state`` gave."""
        if self.sharded:
            own = self.optimisers["model"]
            load_whole_state(self.model, own, state["model"], state["optimisers"]["model"])
        else:
            self.model.load_state_dict(dict(state["model"]))
            for name, optimiser in self.optimisers.items():
                optimiser.load_state_dict(dict(state["optimisers"][name]))
        self.scaler.load_state_dict(dict(state["scaler"]))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.ranks.device.type, self.half or torch.bfloat16, enabled=self.half is not None
        )

    def _outputs(self, batch: Batch) -> dict[str, Tensor]:
        with self._autocast():
            given = {name: batch[name] for name in self.task.inputs if name in batch}
            return dict(self.forward(**given))

    def _loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.module.loss(
            outputs, batch, self.task.config, group=self.ranks.group
        )
        return found

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        count = len(next(iter(batch.values())))
        if self.micro_batch >= count:
            parts = self._loss(self._outputs(batch), batch)
            self.scaler.scale(parts["loss"]).backward()
            return {name: part.detach() for name, part in parts.items()}
        pieces = [
            {name: tensor[i : i + self.micro_batch] for name, tensor in batch.items()}
            for i in range(0, count, self.micro_batch)
        ]
        if self.task.separable:
            return self._added_up(pieces, count)
        return self._in_two_passes(pieces, batch)

    def _added_up(self, pieces: list[Batch], count: int) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for piece in pieces:
            share = len(next(iter(piece.values()))) / count
            parts = self._loss(self._outputs(piece), piece)
            self.scaler.scale(parts["loss"] * share).backward()
            for name, part in parts.items():
                total[name] = total.get(name, 0) + share * part.detach()
        return total

    def _in_two_passes(self, pieces: list[Batch], batch: Batch) -> dict[str, Tensor]:
        draws, found = [], []
        kept = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        with torch.no_grad():
            for piece in pieces:
                draws.append(_random_state(self.ranks.device))
                found.append(self._outputs(piece))
            for name, buffer in self.model.named_buffers():  # statistics count once
                buffer.copy_(kept[name])
        outputs = {
            name: torch.cat([part[name] for part in found]).requires_grad_() for name in found[0]
        }
        parts = self._loss(outputs, batch)
        self.scaler.scale(parts["loss"]).backward()
        start = 0
        for piece, draw in zip(pieces, draws, strict=True):
            _set_random_state(self.ranks.device, draw)  # dropout as in the first pass
            again = self._outputs(piece)
            stop = start + len(next(iter(again.values())))
            pulled = [name for name, output in outputs.items() if output.grad is not None]
            torch.autograd.backward(
                [again[name] for name in pulled],
                [_gradient(outputs[name])[start:stop] for name in pulled],
            )
            start = stop
        return {name: part.detach() for name, part in parts.items()}


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
