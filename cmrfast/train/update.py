"""One optimiser step: gradients of a batch, averaged over ranks, applied."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cmrfast.methods import AnyMethod, Batch
from cmrfast.models.recipe import Recipe
from cmrfast.train.micro_batch import Backward
from cmrfast.train.network import TrainingNetwork
from cmrfast.train.ranks import Ranks
from cmrfast.train.shard import load_whole_state, whole_state

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Update:
    """Applies a method's loss, or its own ``step``, to one batch.

    Args:
        method: the method's record.
        config: of the network.
        recipe: of the training.
        network: as it trains.
        ranks: gradients are averaged over them; losses are those of the batch of all.
        micro_batch: samples of this rank that go through the network at a time; None takes all.
    """

    def __init__(
        self,
        method: AnyMethod,
        config: "DataclassInstance",
        recipe: Recipe,
        network: TrainingNetwork,
        ranks: Ranks,
        micro_batch: int | None = None,
    ) -> None:
        self.method, self.config, self.recipe = method, config, recipe
        self.network, self.ranks = network, ranks
        if method.step and network.precision == "float16":
            raise ValueError(
                f"train: {method.name} takes precision float32 or bfloat16; got float16"
            )
        if method.step and network.sharded:
            raise ValueError(f"train: {method.name} has a step of its own, which cannot be sharded")
        if method.step and network.compiled != "no":
            raise ValueError(f"train: {method.name} has a step of its own, which is not compiled")
        # A method with a step of its own has optimisers for each of its networks.
        model = network.model
        parts = dict(model.named_children()) if method.step else {"model": model}
        self.optimisers = recipe.optimisers(parts)
        self.scaler = torch.amp.GradScaler(
            ranks.device.type, enabled=network.precision == "float16"
        )
        self.backward = Backward(
            network,
            self._loss,
            ranks,
            self.scaler,
            mean_loss=method.mean_loss(config),
            size=micro_batch,
        )

    def __call__(self, batch: Batch, *, lr: float, epoch: int) -> dict[str, Tensor]:
        """Update the network; returns this rank's losses before the update, detached.

        Args:
            batch: of this rank, on its device.
            lr: of this step.
            epoch: from 0.
        """
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = lr
        if self.method.step:
            with self.network.autocast():
                return self.method.step(
                    self.network.model,
                    batch,
                    self.optimisers,
                    average=self.ranks.average,
                    group=self.ranks.group,
                    **self.recipe.step_options(epoch),
                )
        optimiser = self.optimisers["model"]
        optimiser.zero_grad(set_to_none=True)
        losses = self.backward(batch)
        finite = losses["loss"].isfinite().float()
        # The flag is sent with the gradients: ranks must update, or not, together.
        own = () if self.network.sharded else self.network.model.parameters()
        self.ranks.average([*(p.grad for p in own if p.grad is not None), finite])
        if finite.item() < 1:
            return losses  # an update would only spread it
        self.scaler.step(optimiser)
        self.scaler.update()
        return losses

    def state(self) -> dict[str, Any]:
        """State of the network, the optimisers and the scaler; all ranks have to call it."""
        model = self.network.model
        if self.network.sharded:
            weights, optimiser = whole_state(model, self.optimisers["model"])
            optimisers = {"model": optimiser}
        else:
            weights = dict(model.state_dict())
            optimisers = {name: o.state_dict() for name, o in self.optimisers.items()}
        return {"model": weights, "optimisers": optimisers, "scaler": self.scaler.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state`` returned."""
        model = self.network.model
        if self.network.sharded:
            own = self.optimisers["model"]
            load_whole_state(model, own, state["model"], state["optimisers"]["model"])
        else:
            model.load_state_dict(dict(state["model"]))
            for name, optimiser in self.optimisers.items():
                optimiser.load_state_dict(dict(state["optimisers"][name]))
                _lay_out_as_parameters(optimiser)
        self.scaler.load_state_dict(dict(state["scaler"]))

    def _loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        return self.method.loss(outputs, batch, self.config, group=self.ranks.group)


def _lay_out_as_parameters(optimiser: torch.optim.Optimizer) -> None:
    """Give moments the strides of their parameters: the fused update reads both in memory order."""
    for parameter, state in optimiser.state.items():
        for name, value in state.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter).copy_(value)
