"""The training loop, one for all methods."""

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TextIO

import torch
from torch import Tensor

from cmrfast.data.cache import Cache
from cmrfast.data.datasets import Split
from cmrfast.data.draws import uniforms
from cmrfast.data.patches import batches
from cmrfast.data.prefetch import Prefetch
from cmrfast.errors import CheckpointError, NotFiniteError
from cmrfast.models import MODELS
from cmrfast.tasks import Batch, Task, task_class
from cmrfast.train.checkpoint import Checkpoint
from cmrfast.train.guard import all_finite, first_not_finite, stopping
from cmrfast.train.log import Log
from cmrfast.train.memory import micro_batch_that_fits
from cmrfast.train.norm import share_norms
from cmrfast.train.ranks import Ranks, joined
from cmrfast.train.run import Plan, Run, changed, deal, plain
from cmrfast.train.shard import shard
from cmrfast.train.update import Update

Compiled = Literal["no", "default", "graphs"]


def train(
    method: str,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    changes: Mapping[str, Any] | None = None,
    split: Split | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    micro_batch: int | None = None,
    precision: str | None = None,
    compiled: Compiled = "no",
    channels_last: bool | None = None,
    sharded: bool = False,
    save_every_s: float = 600.0,
    timeout_s: float = 600.0,
    tensorboard: bool = False,
    cache: Cache | None = None,
    stream: TextIO | None = None,
    watch: Callable[[int, float], None] | None = None,
) -> Run:
    """Train a method's recipe on a folder of images; under torchrun, on all its processes.

    The result depends on the plan in ``run.json`` and the images alone: a run that was resumed
    ends, on the CPU, in the same bits as one that never stopped.

    Args:
        method: a key of ``cmrfast.models.MODELS``.
        data: root of a data set that the method reads.
        out: folder of the run.
        changes: fields of the method's ``Config`` and ``Recipe``.
        split: patients by name; default dealt out from the seed in the recipe's proportions.
        steps: optimiser steps in all; default those of the epochs.
        epochs: passes over the training set; default the recipe's.
        seed: of weights, split, sampling, augmentation and dropout.
        device: auto, cpu or cuda.
        resume: continue from the newest whole checkpoint, or start where there is none.
        micro_batch: samples that go through the network at once; None finds what fits.
        precision: float32, bfloat16 or float16; None is bfloat16 on a GPU that has it.
        compiled: run the network through ``torch.compile``; ``graphs`` captures CUDA graphs.
        channels_last: lay 2-D features out channels last; None does in half precision on a GPU.
        sharded: deal weights and optimiser state out to the ranks (FSDP), for large networks.
        save_every_s: seconds between checkpoints within an epoch; each epoch ends with one.
        timeout_s: how long a rank waits for the others before it ends.
        tensorboard: write its events too.
        cache: keeps prepared images between runs.
        stream: for progress; None is silent.
        watch: called with (step, validation score) after every epoch; may raise to end the run.

    Returns:
        The run. A signal ends the process, after a last checkpoint, with ``SystemExit``.
    """
    with joined(device, timeout_s=timeout_s) as ranks, stopping() as stop:
        run, task = _open(
            method,
            data,
            out,
            ranks,
            cache,
            changed=changed(method, dict(changes or {}, **({"epochs": epochs} if epochs else {}))),
            split=split,
            seed=seed,
            resume=resume,
            precision=precision or _default_precision(ranks.device),
        )
        feed = task.feed(run.cases("train", data), seed=seed)
        recipe = run.recipe
        order = _Order(seed, len(feed), recipe)
        torch.manual_seed(seed)
        model = MODELS[method](run.config).to(ranks.device).train()
        model = share_norms(model, ranks)
        half = run.plan.precision != "float32"
        if channels_last or (channels_last is None and half and ranks.device.type == "cuda"):
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if sharded:
            shard(model, ranks)
        update = Update(
            task,
            model,
            ranks,
            micro_batch=order.batch,
            precision=run.plan.precision,
            forward=_compile(model, compiled),
            sharded=sharded,
        )
        run = _planned(run, ranks, order, steps, micro_batch, update, feed, resume)
        update.micro_batch = -(-run.plan.micro_batch // ranks.count)
        step = _restore(run, update, ranks) if resume else 0
        if ranks.first:  # not before: a refused checkpoint leaves the run as it was
            run.save()
        ranks.agree(None)  # the folder is there for all

        def make(number: int) -> Batch:
            epoch, samples = order.samples(number)
            return feed.batch(epoch, ranks.share(samples))

        ahead = Prefetch(make, range(step, run.plan.steps))
        with Log(
            run.path / (f"log-rank{ranks.rank}.jsonl" if ranks.rank else "log.jsonl"),
            start=step,
            steps=run.plan.steps,
            tensorboard=run.path / "tensorboard" if tensorboard and ranks.first else None,
            stream=stream if ranks.first else None,
        ) as log:
            log.say(_summary(run, order, ranks))
            saved_at = begin = time.monotonic()
            waited = 0.0
            for batch in ahead:
                epoch = step // order.steps_per_epoch
                _seed_step(seed, step, ranks.rank)
                lr = recipe.lr_at(epoch, step)
                late = time.monotonic() - saved_at > save_every_s
                try:
                    own = update(batch, lr=lr, epoch=epoch)
                except NotFiniteError as error:  # of a network behind another one
                    raise _not_finite(update, batch, step, math.nan, seed) from error
                losses, ending, late = _agreed(own, ranks, bool(stop), late)
                if not math.isfinite(losses["loss"]):
                    raise _not_finite(update, batch, step, losses["loss"], seed)
                step += 1
                now = time.monotonic()
                log.step(
                    step,
                    losses,
                    lr=lr,
                    epoch=epoch,
                    samples_per_s=order.count(step - 1) / (now - begin),
                    waited_share=(ahead.waited_s - waited) / (now - begin),
                )
                begin, waited = now, ahead.waited_s

                done = step == run.plan.steps
                epoch_done = step % order.steps_per_epoch == 0
                score = None
                if done or (epoch_done and (watch or recipe.keep == "best")):
                    score = _validate(run, update, data)
                    log.validation(step, score)
                    if watch:
                        watch(step, score)
                if done or epoch_done or late or ending:
                    _save(run, update, step, score)
                    saved_at = time.monotonic()
                    begin = saved_at
                if ending and not done:
                    log.say(f"stopped after step {step}; --resume continues")
                    raise SystemExit(stop.exit_code or 143)
        return run


class _Order:
    """Which samples each step learns from, as a function of its number."""

    def __init__(self, seed: int, samples: int, recipe: Any) -> None:
        self.seed, self.total, self.recipe = seed, samples, recipe
        self.batch: int = min(recipe.batch, samples)
        whole, rest = divmod(samples, self.batch)
        self.steps_per_epoch: int = whole + (rest > 0 and not recipe.drop_last)
        self._epoch: tuple[int, list[Tensor]] = (-1, [])

    def samples(self, step: int) -> tuple[int, Tensor]:
        """The epoch and the samples of a step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            drop = self.recipe.drop_last
            dealt = batches(self.seed, epoch, self.total, self.batch, drop_last=drop)
            self._epoch = (epoch, dealt)
        return epoch, self._epoch[1][place]

    def count(self, step: int) -> int:
        """Samples of a step."""
        first = step % self.steps_per_epoch * self.batch
        return min(self.batch, self.total - first)


def _open(
    method: str,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    ranks: Ranks,
    cache: Cache | None,
    *,
    changed: tuple[Any, Any],
    split: Split | None,
    seed: int,
    resume: bool,
    precision: str,
) -> tuple[Run, Task]:
    """The run as asked for, not yet written, and its task with what it fitted."""
    config, recipe = changed
    there = (Path(out) / "run.json").exists()
    if there and not resume:
        raise CheckpointError(f"train: {out} holds a run already; resume (--resume) continues it")
    stored = Run.open(out) if there else None
    if stored and split not in (None, stored.plan.split):
        raise CheckpointError(f"train: {out} was begun with another split of the patients")
    if stored:
        layout, split, fitted = stored.plan.layout, stored.plan.split, stored.fitted
    else:
        layout, split = deal(method, data, recipe, seed, split)
        fitted = None
    plan = Plan(
        method,
        plain(config),
        plain(recipe),
        steps=0,
        seed=seed,
        layout=layout,
        split=split,
        micro_batch=stored.plan.micro_batch if stored else 0,
        precision=precision,
    )
    run = Run(out, plan, str(Path(data).resolve()), fitted)
    if fitted is None:
        blank = task_class(method)(config, recipe, device=ranks.device, cache=cache)
        run.fitted = ranks.agree(blank.fit(run.cases("train")) if ranks.first else None)
    return run, run.task(device=ranks.device, cache=cache)


def _not_finite(
    update: Update, batch: Batch, step: int, loss: float, seed: int
) -> FloatingPointError:
    """What to say of a step whose loss is not finite."""
    _seed_step(seed, step, update.ranks.rank)
    inputs = {name: batch[name] for name in update.task.inputs if name in batch}
    where = "not looked for" if update.sharded else first_not_finite(update.model, inputs)
    return FloatingPointError(
        f"train: the loss of step {step + 1} is {loss}; first not finite is {where}; "
        "the last checkpoint is untouched"
    )


def _planned(
    run: Run,
    ranks: Ranks,
    order: _Order,
    steps: int | None,
    micro_batch: int | None,
    update: Update,
    feed: Any,
    resume: bool,
) -> Run:
    """The run with its steps and micro-batch settled."""
    if micro_batch is None and not (resume and run.plan.micro_batch):
        share = -(-order.batch // ranks.count)
        sample = feed.batch(0, torch.zeros(1, dtype=torch.int64))
        micro_batch = micro_batch_that_fits(update, sample, share) * ranks.count
    plan = replace(
        run.plan,
        steps=steps or order.steps_per_epoch * run.recipe.epochs,
        micro_batch=ranks.agree(min(micro_batch or run.plan.micro_batch, order.batch)),
    )
    return Run(run.path, plan, run.data, run.fitted)


def _compile(model: torch.nn.Module, compiled: Compiled) -> Any:
    if compiled == "no":
        return None
    return torch.compile(model, mode="reduce-overhead" if compiled == "graphs" else None)


def _restore(run: Run, update: Update, ranks: Ranks) -> int:
    found = run.checkpoints.load_newest(run.made_for)
    step = found.step if found else 0
    if ranks.agree(step) != step:
        raise CheckpointError(f"train: ranks found different checkpoints in {run.path}")
    if found is not None:
        update.load(found.state)
    return step


def _save(run: Run, update: Update, step: int, score: float | None) -> None:
    ranks = update.ranks
    state = update.state()
    if not ranks.agree(all_finite(state["model"])):
        raise FloatingPointError(
            f"train: a weight is not finite after step {step}; the last checkpoint is untouched"
        )
    if ranks.first:
        finite = score if score is None or math.isfinite(score) else None
        run.checkpoints.save(Checkpoint(step, run.made_for, state, finite))
    ranks.agree(None)  # nobody runs ahead of a checkpoint that may fail


def _validate(run: Run, update: Update, data: str | os.PathLike[str]) -> float:
    """The mean of the task's objective over the validation patients; higher is better."""
    task, model, ranks = update.task, update.model, update.ranks
    name = task.objective.removeprefix("-")
    model.eval()
    cases = run.cases("validate", data)
    # Where weights are dealt out every forward takes all ranks, so all see all patients.
    own = cases if update.sharded else cases[ranks.rank :: ranks.count]
    with torch.no_grad():
        rows = [row for case in own for row in task.evaluate(model, case)]
    model.train()
    values = [float(row[name]) for part in ranks.gather(rows) for row in part if name in row]
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return math.nan
    mean = sum(values) / len(values)
    return -mean if task.objective.startswith("-") else mean


def _agreed(
    losses: Mapping[str, Tensor], ranks: Ranks, ending: bool, late: bool
) -> tuple[dict[str, float], bool, bool]:
    """The losses of the batch of all ranks, and whether any rank wants to end or to save."""
    wishes = torch.tensor([ending, late], dtype=torch.float64, device=ranks.device)
    values = torch.cat((torch.stack([part.double() for part in losses.values()]), wishes))
    ranks.average([values])
    *parts, any_ending, any_late = values.tolist()
    return dict(zip(losses, parts, strict=True)), any_ending > 0, any_late > 0


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout and the like depend on the step, not on what was drawn before it."""
    draw = uniforms(seed, step, torch.tensor([rank]), 1)
    torch.manual_seed(int(draw.item() * 2**53))


def _default_precision(device: torch.device) -> str:
    bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return "bfloat16" if bfloat16 else "float32"


def _summary(run: Run, order: _Order, ranks: Ranks) -> str:
    plan, split = run.plan, run.plan.split
    text = (
        f"{plan.method}: {len(split.train)} patients to train, {len(split.validate)} to validate, "
        f"{len(split.test)} to test; {order.total} samples, {plan.steps} steps of {order.batch}"
    )
    if plan.micro_batch < order.batch:
        text += f", {plan.micro_batch} at once"
    if order.batch < order.recipe.batch:
        text += f" (the recipe's {order.recipe.batch} is more than there is)"
    ranks_text = f"{ranks.count} ranks on " if ranks.count > 1 else ""
    return f"{text}; {ranks_text}{ranks.device}, {plan.precision}"
