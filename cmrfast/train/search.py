"""Bayesian optimisation of a recipe: Gaussian process, pruning, any number of workers."""

import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cmrfast import methods
from cmrfast.atomic import atomic_write
from cmrfast.data.random import uniforms
from cmrfast.methods.method import AnyMethod, LogUniform, Range
from cmrfast.train.trainer import train


def search(
    method: str,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    trials: int = 30,
    ranges: Mapping[str, Range] | None = None,
    storage: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Search for the values of a recipe that give the best validation score.

    Every trial is a run in ``out/trials``. A search that is started again, or by several workers on
    one ``storage``, continues the same study; a trial whose worker died is repeated.

    Args:
        method: a key of ``cmrfast.models.MODELS``.
        data: root of a data set that the method reads.
        out: folder of the search.
        trials: number of finished or pruned trials, of all workers.
        ranges: field → range; default those of the method, without fields that ``changes`` sets.
        storage: URL of an Optuna storage; default SQLite in ``out``.
        options: of ``train``, such as ``steps`` or ``changes``; ``seed`` also seeds the sampler,
            together with the number of the trial, ``stream`` shows a line a trial.

    Returns:
        ``best`` values, their ``score``, and the number of ``trials``.

    Raises:
        ValueError: a field has both a range and a value, or none has a range.
    """
    try:
        import optuna
        from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
        from optuna.trial import TrialState
    except ImportError as error:
        raise ImportError(
            "search: needs the extra search: pip install 'cmrfast[search]'"
        ) from error

    record, given = methods.get(method), options.get("changes") or {}
    ranges = _ranges_without(given, ranges, record)
    keeps_best = record.configure(given)[1].keep == "best"
    seed, stream = options.get("seed", 0), options.pop("stream", None)
    folder = Path(out)

    def sampler(number: int) -> Any:
        # As the tool of joint_scar's paper: random until two results exist. Kernel and acquisition
        # are Optuna's, Matérn 5/2 and log EI; the tool's are Matérn 3/2 and EI of 1000 candidates.
        return optuna.samplers.GPSampler(seed=_seed(seed, number), n_startup_trials=2)

    (folder / "trials").mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            study_name=method,
            storage=RDBStorage(
                storage or f"sqlite:///{folder.resolve()}/search.db",
                heartbeat_interval=30,
                grace_period=120,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=3),
            ),
            sampler=sampler(0),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1),
            direction="maximize",
            load_if_exists=True,
        )

    def objective(trial: Any) -> float:
        # Workers and restarts, which would all draw the same from one seed, share the numbers.
        study.sampler = sampler(trial.number)
        changes = {
            name: trial.suggest_float(name, r.low, r.high, log=isinstance(r, LogUniform))
            for name, r in ranges.items()
        }
        scores: list[float] = []

        def watch(step: int, score: float) -> None:
            scores.append(score)
            if math.isnan(score):
                return
            trial.report(score, step)
            if trial.should_prune():
                raise optuna.TrialPruned

        place = folder / "trials" / f"{trial.number:04d}"
        own = {**options, "changes": {**given, **changes}}
        try:
            train(method, data, place, **own, resume=True, watch=watch)
        except FloatingPointError as error:
            # Taken by the sampler for the worst so far, so that it avoids these values.
            trial.set_user_attr("diverged", str(error))
            scores = [-math.inf]
        # The score of the weights that the run keeps.
        kept = [s for s in scores if not math.isnan(s)] if keeps_best else scores[-1:]
        score = max(kept, default=math.nan)
        if math.isnan(score):
            raise ValueError("search: the validation patients have nothing to score")
        if stream is not None:
            stream.write(f"trial {trial.number}: score {score:.4g}  {_words(changes)}\n")
        return score

    over = (TrialState.COMPLETE, TrialState.PRUNED)
    while (ended := len(study.get_trials(deepcopy=False, states=over))) < trials:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Clip non-finite values")
            study.optimize(objective, n_trials=1)
    if study.best_value == -math.inf:
        raise ValueError(f"search: all of {ended} trials diverged; lower the ranges")
    result = {"best": study.best_params, "score": study.best_value, "trials": ended}
    with atomic_write(folder / "best.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    _plot(study, folder)
    return result


def _ranges_without(
    changes: Mapping[str, Any], ranges: Mapping[str, Range] | None, method: AnyMethod
) -> dict[str, Range]:
    """The given ranges, or those of the method for fields that are not changed."""
    both = [name for name in ranges or {} if name in changes]
    if both:
        raise ValueError(
            f"search: a field may have a range or a value, not both; got both of {', '.join(both)}"
        )
    found = {name: r for name, r in (ranges or method.search).items() if name not in changes}
    if not found:
        raise ValueError(
            f"search: {', '.join(method.search)} are all given; ranges must name other fields"
        )
    return found


def _seed(seed: int, number: int) -> int:
    """Seed of the sampler for a trial, in 32 bits."""
    return int(uniforms(seed, 0, torch.tensor([number]), 1, "search").item() * (1 << 32))


def _plot(study: Any, folder: Path) -> None:
    """Score over trials, and over each field that all of them varied."""
    from matplotlib.figure import Figure

    done = [t for t in study.trials if t.value is not None and math.isfinite(t.value)]
    names = [name for name in done[0].params if all(name in t.params for t in done)]
    figure = Figure((3 * (len(names) + 1), 3), layout="constrained")
    first, *others = figure.subplots(1, len(names) + 1, sharey=True, squeeze=False)[0]
    scores = [t.value for t in done]
    best = [max(scores[: i + 1]) for i in range(len(scores))]
    first.plot([t.number for t in done], scores, "o", markersize=4)
    first.step([t.number for t in done], best, where="post")
    first.set(xlabel="trial", ylabel="validation score")
    for panel, name in zip(others, names, strict=True):
        panel.plot([t.params[name] for t in done], scores, "o", markersize=4)
        panel.set_xlabel(name)
        if done[0].distributions[name].log:
            panel.set_xscale("log")
    figure.savefig(folder / "search.png", dpi=120, metadata={"Software": None})


def _words(changes: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in changes.items())
