"""One HTML page of a run that needs no other file: curves, tables, pictures to scroll through."""

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cmrfast import viz
from cmrfast.atomic import replacing
from cmrfast.evaluate import Evaluation, evaluate
from cmrfast.metrics import summarise
from cmrfast.tasks import Row, Task, View
from cmrfast.train.log import read_log
from cmrfast.train.run import Run

_FACTS = {"step", "lr", "epoch", "samples_per_s", "waited_share", "validation"}
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;
color:#222}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.2rem;border-bottom:1px solid #ddd}
table{border-collapse:collapse;margin:.8rem 0}
th,td{padding:.2rem .8rem;border-bottom:1px solid #eee;text-align:right}
th:first-child,td:first-child{text-align:left}th{border-bottom:2px solid #999}
th.over{text-align:center;border-bottom:1px solid #eee}
.about td{text-align:left}
.scroll{overflow-x:auto}.case{display:inline-block;vertical-align:top;margin:0 1rem 1.5rem 0}
.case img{display:none;height:20rem;background:#000}.case img.on{display:block}
.case input{width:100%}img.plot{max-width:100%}.note{color:#666}
"""
_SCRIPT = """
for (const c of document.querySelectorAll('.case')) {
  const images = c.querySelectorAll('img'), slider = c.querySelector('input');
  const show = () => images.forEach((x, i) => x.classList.toggle('on', i == slider.value));
  slider.addEventListener('input', show); show();
}
"""


def report(
    run: Run, *, part: str = "test", data: str | None = None, device: torch.device | str = "cpu"
) -> Path:
    """Write ``report.html`` and its figures into the run's folder.

    Args:
        run: a trained one.
        part: of the split, whose patients are scored and shown.
        data: root of the data set; default where it lay in training.
        device: where the network runs.

    Returns:
        The page.
    """
    task, model = run.task(device=device), run.model(device=device)
    found = evaluate(run, data, part=part, device=device)
    found.save(run.path)
    cases = {case.name: case for case in run.cases(part, data)}
    chosen = _best_median_worst(task, found)
    with torch.inference_mode():
        views = {title: task.view(model, cases[name]) for title, name in chosen.items()}
    curves = _curves(read_log(run.path / "log.jsonl"))
    (run.path / "figures").mkdir(exist_ok=True)
    _write(run.path / "figures" / "curves.png", curves)
    for title, view in views.items():
        place = run.path / "figures" / f"{title.split()[0]}.png"
        viz.overlay(view.image, view.predicted, place, names=task.structures)
    page = run.path / "report.html"
    _write(page, _page(run, found, task, curves, views).encode())
    return page


def _page(run: Run, found: Evaluation, task: Task, curves: bytes, views: Mapping[str, View]) -> str:
    plan = run.plan
    split = plan.split
    facts = {
        "patients": f"{len(split.train)} to train, {len(split.validate)} to validate, "
        f"{len(split.test)} to test",
        "data": f"{plan.layout}, {run.data}",
        "steps": f"{run.checkpoint().step} of {plan.steps}",
        "seed": plan.seed,
        "config": _fields(plan.config),
        "recipe": _fields(plan.recipe),
    }
    about = "".join(f"<tr><td>{k}</td><td>{_text(v)}</td></tr>" for k, v in facts.items())
    body = [
        f"<h1>{_text(plan.method)}</h1><table class=about>{about}</table>",
        f"<h2>Training</h2><img class=plot alt='loss over steps' src='{_inline(curves)}'>",
        f"<h2>Scores of the {_text(found.part)} patients</h2>{_scores(found)}",
        "<h2>Best, median and worst case</h2><p class=note>Move the slider through the slices.</p>",
        *(_case(title, view, task.structures) for title, view in views.items()),
        f"<h2>Every case</h2><p class=note>Means; evaluation-{_text(found.part)}.csv has every "
        f"slice.</p><div class=scroll>{_cases(found)}</div>",
    ]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>{_text(plan.method)}</title><style>{_STYLE}</style>"
        f"<body>{''.join(body)}<script>{_SCRIPT}</script></body></html>\n"
    )


def _best_median_worst(task: Task, found: Evaluation) -> dict[str, str]:
    """Titles and names of three cases, by the mean of the task's objective."""
    metric = task.objective.removeprefix("-")
    values: dict[str, list[float]] = {}
    for row in found.rows:
        value = float(row.get(metric, math.nan))
        if not math.isnan(value):
            values.setdefault(str(row["case"]), []).append(value)
    means = {name: sum(v) / len(v) for name, v in values.items()}
    if not means:
        return {}
    ranked = sorted(means, key=lambda n: means[n], reverse=not task.objective.startswith("-"))
    places = {"best": 0, "median": len(ranked) // 2, "worst": len(ranked) - 1}
    titles: dict[str, str] = {}
    for title, place in places.items():
        name = ranked[place]
        if name not in titles.values():
            titles[f"{title} ({name}, {metric} {means[name]:.3g})"] = name
    return titles


def _case(title: str, view: View, names: Mapping[int, str]) -> str:
    images = []
    for k in range(view.image.shape[2]):
        sides = [view.predicted] + ([view.reference] if view.reference else [])
        drawn = [viz.overlay(view.image, side, slices=[k], names=names) for side in sides]
        images.append(_beside(drawn))
    pictures = "".join(f"<img alt='slice {k}' src='{_inline(p)}'>" for k, p in enumerate(images))
    middle = len(images) // 2
    return (
        f"<div class=case><b>{_text(title)}</b><br>"
        f"<span class=note>predicted{' | drawn' if view.reference else ''}</span>{pictures}"
        f"<input type=range min=0 max={len(images) - 1} value={middle}></div>"
    )


def _beside(pictures: Sequence[bytes]) -> bytes:
    """PNGs of one height in a row."""
    import numpy as np
    from matplotlib.image import imread, imsave

    planes = [imread(io.BytesIO(picture)) for picture in pictures]
    height = max(plane.shape[0] for plane in planes)
    padded = [np.pad(p, ((0, height - p.shape[0]), (0, 0), (0, 0))) for p in planes]
    file = io.BytesIO()
    imsave(file, np.concatenate(padded, 1), format="png")
    return file.getvalue()


def _curves(records: Sequence[Mapping[str, Any]]) -> bytes:
    from matplotlib.figure import Figure

    steps = [record for record in records if "loss" in record]
    scores = [r for r in records if r.get("validation") is not None]
    figure = Figure((9, 3.2), layout="constrained")
    panels = figure.subplots(1, 2 if scores else 1, squeeze=False)[0]
    names = [name for name in (steps[-1] if steps else {}) if name not in _FACTS]
    for name in names:
        x = [record["step"] for record in steps if name in record]
        y = [record[name] for record in steps if name in record]
        panels[0].plot(x, _smooth(y), label=name, linewidth=1.2)
    panels[0].set(xlabel="step", ylabel="loss (running mean)")
    if names:
        panels[0].legend(frameon=False)
    if scores:
        panels[1].plot(
            [r["step"] for r in scores], [r["validation"] for r in scores], "o-", markersize=3
        )
        panels[1].set(xlabel="step", ylabel="validation score")
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
    return file.getvalue()


def _smooth(values: Sequence[float]) -> list[float]:
    width = max(1, len(values) // 50)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    ends = range(1, len(sums))
    return [(sums[i] - sums[max(0, i - width)]) / min(i, width) for i in ends]


def _scores(found: Evaluation) -> str:
    """Metrics down; across, this run and the rows of the paper's table."""
    printed = len(found.published)
    paper = f"<th colspan={printed} class=over>published</th>" if printed else ""
    over = f"<tr><th class=over></th><th colspan=4 class=over>this run</th>{paper}</tr>"
    head = ["metric", "mean", "SD", "median", "units", *found.published]
    lines = []
    for name, (s, theirs) in found.beside_published().items():
        ours = [*map(_number, (s.mean, s.sd, s.median)), str(s.cases)] if s else ["-"] * 4
        lines.append([name, *ours, *theirs])
    rows = "".join(f"<tr>{''.join(f'<td>{_text(c)}</td>' for c in line)}</tr>" for line in lines)
    heads = "".join(f"<th>{_text(name)}</th>" for name in head)
    return f"<div class=scroll><table>{over}<tr>{heads}</tr>{rows}</table></div>"


def _cases(found: Evaluation) -> str:
    cases: dict[str, list[Row]] = {}
    for row in found.rows:
        cases.setdefault(str(row["case"]), []).append(row)
    names = list(found.scores)
    head = "".join(f"<th>{_text(name)}</th>" for name in ["case", *names])
    lines = []
    for case, rows in cases.items():
        means = [summarise([float(r.get(n, math.nan)) for r in rows]).mean for n in names]
        cells = "".join(f"<td>{_number(mean)}</td>" for mean in means)
        lines.append(f"<tr><td>{_text(case)}</td>{cells}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"


def _fields(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in values.items())


def _text(value: Any) -> str:
    return html.escape(str(value))


def _inline(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)
