"""Training, one loop for all methods: options become a plan, and the trainer follows it."""

import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from cmrfast import methods
from cmrfast.data.datasets.case import Case
from cmrfast.data.datasets.match import Values
from cmrfast.data.loading import Prefetch
from cmrfast.errors import CheckpointError, FileError, NotFiniteError
from cmrfast.methods import AnyMethod, AnyTask, Batch, open_cases
from cmrfast.train.allocator import keep_freed_memory
from cmrfast.train.checkpoint import Checkpoint
from cmrfast.train.conditions import Conditions, threads
from cmrfast.train.guard import Stop, all_finite, catch_signals, first_not_finite
from cmrfast.train.init import read_weights
from cmrfast.train.inputs import Digests, input_digests, require_same_inputs
from cmrfast.train.lock import hold
from cmrfast.train.log import Log, Pace
from cmrfast.train.memory import micro_batch_that_fits
from cmrfast.train.network import TrainingNetwork, build_network
from cmrfast.train.norm import norms_alone
from cmrfast.train.order import SampleOrder, seed_step
from cmrfast.train.plan import Plan, TrainOptions, choose_split, fields_as_json
from cmrfast.train.proof import AFTER, BATCH, BEFORE, Proof
from cmrfast.train.ranks import Ranks, process_group
from cmrfast.train.run import Run
from cmrfast.train.trackers import open_trackers
from cmrfast.train.update import Update
from cmrfast.train.validation import Validation


def train(
    method: str,
    data: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    changes: Mapping[str, Any] | None = None,
    **options: Any,
) -> Run:
    """Train a method's recipe on a folder of images; under torchrun, on all its processes.

    A run that was resumed ends in the same bits as one that never stopped, on the same kind of
    machine and under the same versions; it keeps the number of threads that it began under.

    Args:
        method: a key of ``cmrfast.models.MODELS``.
        data: root of a data set that the method reads; None takes that of the run to resume.
        out: folder of the run.
        changes: fields of the method's ``Config`` and ``Recipe``.
        options: fields of ``TrainOptions``, such as ``steps`` or ``resume``. Those that are not
            given, and fields that are not changed, are those of the run to resume.

    Returns:
        The run. A signal ends the process, after a last checkpoint, with ``SystemExit``.
    """
    record, stored = methods.get(method), _run_in(out) if options.get("resume") else None
    if stored:
        if stored.plan.method != method:
            raise CheckpointError(
                f"train: {out} is a run of {stored.plan.method}; it cannot resume as {method}"
            )
        before = stored.options
        if options.get("epochs") and not options.get("steps"):
            del before["steps"]  # epochs set the number of steps, too
        options = {**before, **options}
        changes = {**stored.changes, **(changes or {})}
        data = data or stored.data
    if data is None:
        raise ValueError(f"train: data is needed, the root of a data set; {out} holds no run")
    chosen = TrainOptions.of(options)
    with (
        process_group(chosen.device, timeout_s=chosen.timeout_s) as ranks,
        hold(Path(out)) if ranks.first else nullcontext(),
        threads(_threads_of(out)),
        keep_freed_memory(),
        catch_signals() as stop,
    ):
        return Trainer(record, data, out, changes or {}, chosen, ranks).fit(stop)


class Trainer:
    """One training: its plan, complete before the first step, and everything the steps need.

    Args:
        method: the method's record.
        data: root of the data set.
        out: folder of the run.
        changes: fields of the method's Config and Recipe.
        options: of the training.
        ranks: that train together.
    """

    def __init__(
        self,
        method: AnyMethod,
        data: str | os.PathLike[str],
        out: str | os.PathLike[str],
        changes: Mapping[str, Any],
        options: TrainOptions,
        ranks: Ranks,
    ) -> None:
        self.method, self.data, self.options, self.ranks = method, data, options, ranks
        if options.sharded and ranks.group is None:
            raise ValueError(
                "train: sharded (--sharded) divides the weights over processes, which torchrun "
                "starts; there is one"
            )
        epochs = {"epochs": options.epochs} if options.epochs else {}
        config, self.recipe = method.configure({**changes, **epochs})
        stored = _stored_run(out, options)
        labels = stored.plan.labels if stored else options.labels
        layout, split = (
            (stored.plan.layout, stored.plan.split)
            if stored
            else choose_split(method, data, self.recipe, options.seed, options.split, labels)
        )
        dataset = open_cases(method, data, layout=layout, values=labels)
        cases = list(dataset.subset(split.train))
        validated = list(dataset.subset(split.validate))

        def task(fitted: Mapping[str, Any] | None) -> AnyTask:
            return method.task(
                config, self.recipe, fitted, device=ranks.device, cache=options.cache
            )

        fitted = (
            stored.fitted
            if stored
            else ranks.broadcast(task(None).fit(cases) if ranks.first else None)
        )
        self.task = task(fitted)
        self.feed = self.task.feed(cases, seed=options.seed)
        self.validation = Validation(self.task, method.objective, validated, ranks)
        self.order = SampleOrder(options.seed, len(self.feed), self.recipe)
        network = build_network(method, config, self.recipe, options, ranks)
        plan = Plan(
            method.name,
            fields_as_json(config),
            fields_as_json(self.recipe),
            steps=options.steps or self.order.steps_per_epoch * self.recipe.epochs,
            seed=options.seed,
            layout=layout,
            split=split,
            micro_batch=self._micro_batch(network, stored),
            precision=network.precision,
            labels=labels,
            init=None if options.init is None else str(Path(options.init).resolve()),
        )
        inputs = self._inputs([*cases, *validated], stored)
        conditions = Conditions.here(options, ranks)
        begun = (stored.conditions if stored else None) or conditions
        self.changed_conditions = begun.differences(conditions)
        self.cases, self.proof = cases, Proof.load(Path(out)) if stored else Proof()
        self._unscored = False
        self.run = Run(out, plan, str(Path(data).resolve()), fitted, inputs, begun)
        own_samples = -(-plan.micro_batch // ranks.count)
        self.update = Update(method, config, self.recipe, network, ranks, micro_batch=own_samples)

    def fit(self, stop: Stop) -> Run:
        """Follow the plan to its last step, from the newest checkpoint where one is resumed."""
        run, order = self.run, self.order
        step = self._restore() if self.options.resume else 0
        if self.ranks.first:  # not before: a refused checkpoint leaves the run as it was
            run.save()
            if step < run.plan.steps:  # a longer run does not score a step within an epoch
                run.checkpoints.forget_scores(lambda done: not order.ends_epoch(done))
        self.ranks.broadcast(None)  # the folder exists for all ranks
        batches = Prefetch(self._batch, range(step, run.plan.steps))
        with self._open_log(step) as log:
            log.say(self._summary())
            last_epoch = order.epoch(run.plan.steps - 1)
            if missing := self.recipe.not_reached(run.config, last_epoch):
                log.say(f"training ends in epoch {last_epoch + 1} and never reaches {missing}")
            if self.changed_conditions:
                changed = ", ".join(self.changed_conditions)
                log.say(f"not the bits of the machine where it began: {changed}")
            self.validation.leave_out_unscorable()
            if step and self._unscored and self.validation.cases and self._is_validated(step):
                self._validate(step, log)  # it ended between its checkpoint and its score
            pace, saved_at = Pace(), time.monotonic()
            for batch in batches:
                epoch, lr = order.epoch(step), self.recipe.lr_at(order.epoch(step), step)
                late = time.monotonic() - saved_at > self.options.save_every_s
                losses, ending, late = self._step(batch, step, lr, bool(stop), late)
                step += 1
                facts = pace.lap(order.count(step - 1), batches.waited_s)
                log.step(step, losses, lr=lr, epoch=epoch, **facts)

                last = step == run.plan.steps
                if last or order.ends_epoch(step) or late or ending:
                    self._save(step)  # before it is scored, which takes long and may fail
                    if self._is_validated(step):
                        self._validate(step, log)
                    saved_at = pace.restart()
                if ending and not last:
                    log.say(f"stopped after step {step}; --resume continues")
                    raise SystemExit(stop.exit_code)
        if self.ranks.first:
            self.prove_prediction()
            self.proof.save(run.path)
        return run

    def prove_first_step(self) -> None:
        """Take the first step, which leaves its hashes in the proof, and stop there."""
        self._step(self._batch(0), 0, self.recipe.lr_at(0, 0), ending=False, late=False)

    def prove_prediction(self) -> None:
        """Predict the first training patient that can be, and leave the hashes in the proof."""
        model = self.run.model(device=self.ranks.device)
        for case in self.cases:
            try:
                with torch.inference_mode():
                    prediction = self.task.predict(model, case)
            except FileError:  # left out of training too
                continue
            self.proof.add_prediction(case.name, prediction)
            return

    def _batch(self, step: int) -> Batch:
        epoch, samples = self.order.samples(step)
        samples = self.task.arrange(self.feed, epoch, samples)
        return self.feed.batch(epoch, self.ranks.own_part(samples))

    def _step(
        self, batch: Batch, step: int, lr: float, ending: bool, late: bool
    ) -> tuple[dict[str, float], bool, bool]:
        """One update; losses over all ranks, and whether any rank has to stop or to save."""
        seed_step(self.options.seed, step, self.ranks.rank)
        proving = step == 0 and self.ranks.first
        if proving:
            self.proof.add(BATCH, batch)
            self.proof.add(BEFORE, self._own_weights())
        try:
            own = self.update(batch, lr=lr, epoch=self.order.epoch(step))
        except NotFiniteError as error:  # raised by a network that takes another's output
            raise _not_finite(step, math.nan, self._first_not_finite(batch, step)) from error
        if proving:
            self.proof.add(AFTER, self._own_weights())
        # Sent with the losses: ranks must stop and save after the same step.
        flags = torch.tensor([ending, late], dtype=torch.float64, device=self.ranks.device)
        values = torch.cat((torch.stack([part.double() for part in own.values()]), flags))
        self.ranks.average([values])
        *losses, any_ending, any_late = values.tolist()
        named = dict(zip(own, losses, strict=True))
        if not math.isfinite(named["loss"]):
            finite = bool(own["loss"].isfinite())
            found = self.ranks.gather("" if finite else self._first_not_finite(batch, step))
            where = next((text for text in found if text), "the mean of the losses over the ranks")
            raise _not_finite(step, named["loss"], where)
        return named, any_ending > 0, any_late > 0

    def _own_weights(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers; none where no rank holds all of them."""
        network = self.update.network
        return {} if network.sharded else dict(network.model.state_dict())

    def _first_not_finite(self, batch: Batch, step: int) -> str:
        """What this rank's forward pass first yields that is not finite, in words."""
        seed_step(self.options.seed, step, self.ranks.rank)
        network = self.update.network
        if network.sharded:
            return "not looked for"
        with norms_alone(network.model, self.ranks):  # other ranks may not look
            return first_not_finite(network.model, network.inputs_of(batch))

    def _is_validated(self, step: int) -> bool:
        """Whether the model of a step is scored: the last, and those of epochs that need it."""
        if step == self.run.plan.steps:
            return True
        needed = self.options.watch is not None or self.recipe.keep == "best"
        return needed and self.order.ends_epoch(step)

    def _validate(self, step: int, log: Log) -> None:
        """Score the model of the newest checkpoint."""
        score = self.validation.score(self.update.network, step)
        if self.ranks.first:
            # The best of the epochs stays beside a last step within one: a longer run needs it.
            known = score if math.isfinite(score) else None
            self.run.checkpoints.rescore(step, known, trim=self.order.ends_epoch(step))
        self.ranks.broadcast(None)  # no rank continues before a checkpoint that may fail
        log.validation(step, score)
        if self.options.watch:
            self.options.watch(step, score)

    def _save(self, step: int) -> None:
        ranks, state = self.ranks, self.update.state()
        if not ranks.broadcast(all_finite(state["model"])):
            raise FloatingPointError(
                f"train: a weight is not finite after step {step}; the last checkpoint is untouched"
            )
        if ranks.first:
            self.proof.save(self.run.path)
            self.run.checkpoints.save(Checkpoint(step, self.run.plan.made_for, state))
        ranks.broadcast(None)  # no rank continues before a checkpoint that may fail

    def _restore(self) -> int:
        """Load the newest checkpoint; returns its steps, 0 if there is none."""
        newest = self.run.checkpoints.load_newest(self.run.plan.made_for)
        step = newest.step if newest else 0
        if self.ranks.broadcast(step) != step:
            raise CheckpointError(f"train: ranks found different checkpoints in {self.run.path}")
        if step > self.run.plan.steps:
            raise CheckpointError(
                f"train: {self.run.path} has done {step} steps, so steps must be at least {step}; "
                f"got {self.run.plan.steps}"
            )
        if newest is not None:
            self.update.load(newest.state)
            self._unscored = newest.score is None
        return step

    def _inputs(self, cases: Sequence[Case], stored: Run | None) -> Digests:
        """Hashes of the files to learn from, which must be those that the run began with."""
        ranks = self.ranks
        own = input_digests(self.task, cases) if ranks.first else {}
        if ranks.first and self.options.init is not None:
            own = {**own, "init": {"weights": read_weights(self.options.init)[1]}}
        inputs: Digests = ranks.broadcast(own)
        if stored and stored.inputs:
            require_same_inputs(stored.inputs, inputs)
        return inputs

    def _micro_batch(self, network: TrainingNetwork, stored: Run | None) -> int:
        """Samples of all ranks that go through the network at a time."""
        size, ranks = self.options.micro_batch, self.ranks
        if size is not None and size < self.order.batch and self.method.step:
            raise ValueError(
                f"train: {self.method.name} has a step of its own, which takes its batch of "
                f"{self.order.batch} whole; got micro_batch {size}"
            )
        if size is None and stored:
            size = stored.plan.micro_batch
        if size is None:
            own = -(-self.order.batch // ranks.count)
            if self.method.step is None:  # a step of its own needs its batch whole
                sample = self.feed.batch(0, torch.zeros(1, dtype=torch.int64))
                own = micro_batch_that_fits(network, sample, own)
            size = own * ranks.count
        agreed: int = ranks.broadcast(min(size, self.order.batch))
        return agreed

    def _open_log(self, step: int) -> Log:
        run, ranks = self.run, self.ranks
        names = self.options.track if ranks.first else ()
        fields = {"method": run.plan.method, "seed": run.plan.seed}
        fields |= {**run.plan.config, **run.plan.recipe}
        return Log(
            run.path / (f"log-rank{ranks.rank}.jsonl" if ranks.rank else "log.jsonl"),
            start=step,
            steps=run.plan.steps,
            trackers=open_trackers(names, run.path, start=step, fields=fields),
            stream=self.options.stream if ranks.first else None,
        )

    def _summary(self) -> str:
        plan, order, ranks = self.run.plan, self.order, self.ranks
        split = plan.split
        text = (
            f"{plan.method}: {len(split.train)} patients to train, {len(split.validate)} to "
            f"validate, {len(split.test)} to test; {order.total} samples, "
            f"{plan.steps} steps of {order.batch}"
        )
        if split.tested_unlabelled:
            text += f"; {len(split.tested_unlabelled)} tested patients train too, without masks"
        if plan.init:
            text += f"; weights of {plan.init}"
        if plan.micro_batch < order.batch:
            text += f", {plan.micro_batch} at once"
        if order.batch < self.recipe.batch:
            text += f" (the recipe's {self.recipe.batch} is more than there is)"
        ranks_text = f"{ranks.count} ranks on " if ranks.count > 1 else ""
        return f"{text}; {ranks_text}{ranks.device}, {plan.precision}"


def _not_finite(step: int, loss: float, where: str) -> FloatingPointError:
    """The error of a step whose loss is not finite."""
    return FloatingPointError(
        f"train: the loss of step {step + 1} is {loss}; first not finite is {where}; "
        "the last checkpoint is untouched"
    )


def _run_in(out: str | os.PathLike[str]) -> Run | None:
    """The run that a folder holds; None if it holds none."""
    return Run.open(out) if (Path(out) / "run.json").exists() else None


def _threads_of(out: str | os.PathLike[str]) -> int | None:
    """The number of threads that a run began under; None where there is none yet."""
    stored = _run_in(out)
    return stored.conditions.threads if stored and stored.conditions else None


def _stored_run(out: str | os.PathLike[str], options: TrainOptions) -> Run | None:
    """The run to resume; None if the folder holds none."""
    stored = _run_in(out)
    if stored is None:
        return None
    if not options.resume:
        raise CheckpointError(f"train: {out} holds a run already; resume (--resume) continues it")
    if options.split not in (None, stored.plan.split):
        raise CheckpointError(f"train: {out} was begun with another split of the patients")
    epochs = stored.recipe.epochs
    if options.epochs not in (None, epochs) and stored.checkpoints.best():
        raise CheckpointError(
            f"train: {out} was begun with {epochs} epochs; "
            "steps (--steps) sets how far it continues"
        )
    if options.labels and _sorted(options.labels) != _sorted(stored.plan.labels):
        raise CheckpointError(
            f"train: {out} was begun with {_labels_in_words(stored.plan.labels)}; it cannot resume "
            f"with {_labels_in_words(options.labels)}"
        )
    return stored


def _sorted(labels: Values) -> dict[str, list[int]]:
    return {name: sorted(values) for name, values in labels.items()}


def _labels_in_words(labels: Values) -> str:
    """Labels as the command takes them."""
    given = [f"{name}={','.join(map(str, values))}" for name, values in labels.items()]
    return f"labels {' '.join(given)}" if given else "the data set's own labels"
