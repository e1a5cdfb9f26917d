"""Any method as a LightningModule with its LightningDataModule.

A training with these takes the steps of ``cmrfast.train.train``: the same split, batches, random
numbers, learning rates and updates. Lightning adds its callbacks, loggers and checkpoints. Left to
``train``: several processes, micro-batches, runs to resume to the bit, and reports. Predictions are
those of the task: ``module.task.predict(module.model.eval(), case)``.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cmrfast import methods
from cmrfast.data.cache import Cache
from cmrfast.data.datasets import Case, Split
from cmrfast.data.datasets.match import Values
from cmrfast.data.loading import Prefetch
from cmrfast.methods import AnyTask, Batch, Row, open_cases
from cmrfast.train.order import SampleOrder, seed_step
from cmrfast.train.plan import choose_split

try:
    import lightning
except ImportError as error:
    raise ImportError(
        "compat.lightning: Lightning is needed; install it with pip install 'cmrfast[lightning]'"
    ) from error


class MethodDataModule(lightning.LightningDataModule):
    """A method's data: batches of training patients, and the other patients as cases.

    Args:
        method: a key of ``cmrfast.models.MODELS``.
        data: root of a data set that the method reads.
        changes: fields of the method's ``Config`` and ``Recipe``; those of the module.
        seed: of the split, sampling and augmentation; that of the module.
        split: patients by name; default split from the seed in the recipe's proportions.
        labels: structure → its values in the masks, instead of those that the data set names.
        cache: keeps prepared images between runs.
    """

    def __init__(
        self,
        method: str,
        data: str | os.PathLike[str],
        *,
        changes: Mapping[str, Any] | None = None,
        seed: int = 0,
        split: Split | None = None,
        labels: Values | None = None,
        cache: Cache | None = None,
    ) -> None:
        super().__init__()
        self.method, self.data, self.seed, self.cache = methods.get(method), data, seed, cache
        self.config, self.recipe = self.method.configure(changes or {})
        self.labels = labels or {}
        layout, self.split = choose_split(self.method, data, self.recipe, seed, split, self.labels)
        self._dataset = open_cases(self.method, data, layout=layout, values=self.labels)
        self.task: AnyTask | None = None
        self._steps: _Steps | None = None

    def setup(self, stage: str) -> None:
        """Fit the preparation to the training patients, on the trainer's device."""
        if self.task is None:
            cases = list(self._dataset.subset(self.split.train))
            self.task = self._task(self._task(None).fit(cases))

    def _task(self, fitted: Mapping[str, Any] | None) -> AnyTask:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        task = self.method.task
        return task(self.config, self.recipe, fitted, device=device, cache=self.cache)

    def train_dataloader(self) -> "_Steps":
        """The batches of the trainer's epoch, as ``train`` takes them."""
        assert self.task is not None  # set up before
        if self._steps is None:
            cases = list(self._dataset.subset(self.split.train))
            self._steps = _Steps(self, self.task, self.task.feed(cases, seed=self.seed))
        return self._steps

    def val_dataloader(self) -> "_Cases":
        """The validation patients."""
        return _Cases(self._dataset.subset(self.split.validate))

    def test_dataloader(self) -> "_Cases":
        """The test patients."""
        return _Cases(self._dataset.subset(self.split.test))

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Batches as Lightning moves them; cases are files, and stay where they are."""
        if isinstance(batch, Case):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)


class _Cases:
    """Cases one after the other; of a list, Lightning would make a loader of each."""

    def __init__(self, cases: Iterable[Case]) -> None:
        self._cases = list(cases)

    def __len__(self) -> int:
        return len(self._cases)

    def __iter__(self) -> Iterator[Case]:
        return iter(self._cases)


class _Steps:
    """The batches of one epoch after the other, made by a thread while earlier ones are used."""

    def __init__(self, data: MethodDataModule, task: AnyTask, feed: methods.Feed) -> None:
        self.data, self.task, self.feed = data, task, feed
        self.order = SampleOrder(data.seed, len(feed), data.recipe)

    def __len__(self) -> int:
        return self.order.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        epoch = self.data.trainer.current_epoch if self.data.trainer else 0
        first = epoch * len(self)
        return iter(Prefetch(self._batch, range(first, first + len(self))))

    def _batch(self, step: int) -> Batch:
        epoch, samples = self.order.samples(step)
        return self.feed.batch(epoch, self.task.arrange(self.feed, epoch, samples))


class MethodModule(lightning.LightningModule):
    """A method's network with its loss, optimisers, learning rates and scores.

    It logs the parts of the loss, and after each validation and test the mean of the method's
    objective under its name, such as ``scar_dice``. Methods with a step of their own
    (adversarial_transfer) use Lightning's manual optimization: Lightning counts the steps of all
    optimisers, and neither clips nor accumulates their gradients.

    Args:
        method: a key of ``cmrfast.models.MODELS``.
        changes: fields of the method's ``Config`` and ``Recipe``.
        seed: of the weights and dropout.

    Raises:
        ValueError: when set up, for more than one process, for a data module of another method,
            changes or seed, and for float16 with a step of the method's own.
    """

    def __init__(
        self, method: str, *, changes: Mapping[str, Any] | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.method, self.seed = methods.get(method), seed
        self.config, self.recipe = self.method.configure(changes or {})
        torch.manual_seed(seed)
        self.model: nn.Module = self.method.model(self.config)
        self.recipe.initialise(self.model)
        self.fitted: Mapping[str, Any] = {}
        self.automatic_optimization = self.method.step is None
        self._rows: list[Row] = []
        self._optimisers: tuple[str, ...] = ()  # names, in Lightning's order

    @property
    def task(self) -> AnyTask:
        """The method's task, with what training fitted."""
        return self.method.task(self.config, self.recipe, self.fitted, device=self.device)

    def setup(self, stage: str) -> None:
        """Take over what the data module fitted."""
        trainer, data = self.trainer, self.trainer.datamodule
        name = f"compat.lightning: {self.method.name}"
        if trainer.world_size > 1:
            raise ValueError(
                f"{name} takes one process; got {trainer.world_size}: use cmrfast train under "
                "torchrun"
            )
        if self.method.step and trainer.precision.startswith("16"):
            raise ValueError(f"{name} takes precision 32 or bf16-mixed; got {trainer.precision}")
        if not isinstance(data, MethodDataModule):
            raise ValueError(f"{name} needs a MethodDataModule; got {type(data).__name__}")
        ours = self.method.name, self.config, self.recipe, self.seed
        if ours != (data.method.name, data.config, data.recipe, data.seed):
            raise ValueError(
                f"{name}: module and data module must have the same method, changes and seed; the "
                f"data module is of {data.method.name}, seed {data.seed}"
            )
        assert data.task is not None  # set up first
        if not self.fitted:
            self.fitted = data.task.fitted

    def configure_optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The recipe's optimiser, or those of a step of the method's own."""
        optimisers = self.recipe.optimisers(self._parts())
        self._optimisers = tuple(optimisers)
        return list(optimisers.values())

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the recipe's learning rate and the random numbers of the step."""
        step = self._step(batch_idx)
        lr = self.recipe.lr_at(self.current_epoch, step)
        for optimiser in self.trainer.optimizers:
            for group in optimiser.param_groups:
                group["lr"] = lr
        seed_step(self.seed, step)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """The loss of a batch, or the method's own step."""
        if self.method.step is None:
            inputs = {name: batch[name] for name in self.method.inputs if name in batch}
            losses = self.method.loss(self.model(**inputs), batch, self.config)
        else:
            wrapped = self.optimizers()
            wrapped = wrapped if isinstance(wrapped, list) else [wrapped]
            optimisers = dict(zip(self._optimisers, wrapped, strict=True))
            options = self.recipe.step_options(self.current_epoch)
            losses = self.method.step(self.model, batch, optimisers, **options)
        if not bool(losses["loss"].isfinite()):
            raise FloatingPointError(
                f"compat.lightning: the loss of step {self._step(batch_idx) + 1} is "
                f"{losses['loss'].item()}"
            )
        count = len(next(iter(batch.values())))
        self.log_dict({name: part.detach() for name, part in losses.items()}, batch_size=count)
        return losses["loss"] if self.automatic_optimization else None

    def validation_step(self, case: Case, batch_idx: int) -> None:
        """Score a patient."""
        self._rows += self.task.evaluate(self.model, case)

    def test_step(self, case: Case, batch_idx: int) -> None:
        """Score a patient."""
        self.validation_step(case, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the objective."""
        objective, rows = self.method.objective, self._rows
        self.log(objective.name, objective.mean(rows), batch_size=max(len(rows), 1))
        self._rows = []

    def on_test_epoch_end(self) -> None:
        """Log the objective."""
        self.on_validation_epoch_end()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what was fitted, which predictions need."""
        checkpoint["fitted"] = dict(self.fitted)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what was fitted."""
        self.fitted = checkpoint["fitted"]

    def _parts(self) -> dict[str, nn.Module]:
        """The networks that have optimisers of their own."""
        return dict(self.model.named_children()) if self.method.step else {"model": self.model}

    def _step(self, batch_idx: int) -> int:
        """The number of a step, across epochs."""
        return self.current_epoch * len(self.trainer.datamodule.train_dataloader()) + batch_idx
