"""The HTML of a report: one page that needs no other file."""

import base64
import html
import json
import math
from collections.abc import Mapping
from typing import Any

from cmrfast.methods import Picture, Row
from cmrfast.metrics import summarise
from cmrfast.runs.evaluate import Evaluation
from cmrfast.runs.report.figures import draw_slice
from cmrfast.train.run import Run

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


def render(run: Run, evaluation: Evaluation, curves: bytes, pictures: Mapping[str, Picture]) -> str:
    """The page.

    Args:
        run: that it is about.
        evaluation: of one part of its split.
        curves: figure of the training, PNG.
        pictures: of single cases, by title.
    """
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
        f"<h2>Scores of the {_text(evaluation.part)} patients</h2>{_scores(evaluation)}",
        "<h2>Best, median and worst case</h2><p class=note>Move the slider through the slices.</p>",
        *(_case(title, picture, run.method.structures) for title, picture in pictures.items()),
        "<h2>Every case</h2><p class=note>Means; "
        f"evaluation-{_text(evaluation.part)}.csv has every slice.</p>"
        f"<div class=scroll>{_cases(evaluation)}</div>",
    ]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>{_text(plan.method)}</title><style>{_STYLE}</style>"
        f"<body>{''.join(body)}<script>{_SCRIPT}</script></body></html>\n"
    )


def _case(title: str, picture: Picture, names: Mapping[int, str]) -> str:
    images = [draw_slice(picture, k, names) for k in range(picture.image.shape[2])]
    pictures = "".join(f"<img alt='slice {k}' src='{_inline(p)}'>" for k, p in enumerate(images))
    middle = len(images) // 2
    return (
        f"<div class=case><b>{_text(title)}</b><br>"
        f"<span class=note>predicted{' | drawn' if picture.reference else ''}</span>{pictures}"
        f"<input type=range min=0 max={len(images) - 1} value={middle}></div>"
    )


def _scores(evaluation: Evaluation) -> str:
    """Metrics down; across, this run and the rows of the paper's table."""
    printed = len(evaluation.published)
    paper = f"<th colspan={printed} class=over>published</th>" if printed else ""
    over = f"<tr><th class=over></th><th colspan=4 class=over>this run</th>{paper}</tr>"
    head = ["metric", "mean", "SD", "median", "units", *evaluation.published]
    lines = []
    for name, (s, theirs) in evaluation.beside_published().items():
        ours = [*map(_number, (s.mean, s.sd, s.median)), str(s.cases)] if s else ["-"] * 4
        lines.append([name, *ours, *theirs])
    rows = "".join(f"<tr>{''.join(f'<td>{_text(c)}</td>' for c in line)}</tr>" for line in lines)
    heads = "".join(f"<th>{_text(name)}</th>" for name in head)
    return f"<div class=scroll><table>{over}<tr>{heads}</tr>{rows}</table></div>"


def _cases(evaluation: Evaluation) -> str:
    cases: dict[str, list[Row]] = {}
    for row in evaluation.rows:
        cases.setdefault(row.case, []).append(row)
    names = list(evaluation.scores)
    head = "".join(f"<th>{_text(name)}</th>" for name in ["case", *names])
    lines = []
    for case, rows in cases.items():
        means = [summarise([r.scores.get(n, math.nan) for r in rows]).mean for n in names]
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
