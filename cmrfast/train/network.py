"""A network as it trains: its device, precision and memory format, compiled or sharded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cmrfast.methods import AnyMethod, Batch
from cmrfast.models.recipe import Recipe
from cmrfast.train.init import load_weights, read_weights
from cmrfast.train.norm import sync_batch_norms
from cmrfast.train.plan import Compiled, TrainOptions
from cmrfast.train.ranks import Ranks
from cmrfast.train.shard import shard

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class TrainingNetwork:
    """A model and how it is called.

    Args:
        model: in training mode, on the device.
        forward: the model, or its compiled form.
        inputs: keys of a batch that forward takes.
        device: of the model.
        precision: float32, bfloat16 or float16.
        sharded: whether each rank holds a part of the weights.
        compiled: no, default or graphs; outputs of a graph last until the next call.
    """

    model: nn.Module
    forward: Callable[..., Mapping[str, Tensor]]
    inputs: tuple[str, ...]
    device: torch.device
    precision: str = "float32"
    sharded: bool = False
    compiled: Compiled = "no"

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Outputs for a batch."""
        with self.autocast():
            return dict(self.forward(**self.inputs_of(batch)))

    def inputs_of(self, batch: Batch) -> Batch:
        """What forward takes of a batch."""
        return {name: batch[name] for name in self.inputs if name in batch}

    def autocast(self) -> torch.autocast:
        """The context that lowers the arithmetic to the precision."""
        half = _HALF.get(self.precision)
        return torch.autocast(self.device.type, half or torch.bfloat16, enabled=half is not None)


def build_network(
    method: AnyMethod,
    config: "DataclassInstance",
    recipe: Recipe,
    options: TrainOptions,
    ranks: Ranks,
) -> TrainingNetwork:
    """The method's network with weights drawn from the seed, or those that it starts from."""
    torch.manual_seed(options.seed)
    model = method.model(config)
    recipe.initialise(model)
    if options.init is not None:
        load_weights(model, read_weights(options.init)[0], options.init)
    model = model.to(ranks.device).train()
    model = sync_batch_norms(model, ranks)
    on_gpu_in_half = options.precision != "float32" and ranks.device.type == "cuda"
    if options.channels_last or (options.channels_last is None and on_gpu_in_half):
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options.sharded:
        shard(model, ranks)
    forward = model
    if options.compiled != "no":
        mode = "reduce-overhead" if options.compiled == "graphs" else None
        forward = torch.compile(model, mode=mode)
    return TrainingNetwork(
        model,
        forward,
        method.inputs,
        ranks.device,
        options.precision,
        options.sharded,
        options.compiled,
    )
